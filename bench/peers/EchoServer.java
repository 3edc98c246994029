import java.io.EOFException;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.StandardSocketOptions;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.Base64;
import java.util.Iterator;

/**
 * A WebSocket echo server of the JDK alone: PORT. One thread, one selector. Like many small servers
 * it logs that it could not accept and goes on, and the selector then says at once again that
 * somebody waits.
 */
public final class EchoServer {
  private static final String GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; // RFC 6455, 1.3
  private static final int MOST_BYTES = 1 << 16;

  private ByteBuffer in = ByteBuffer.allocate(1024);
  private boolean isOpen;

  public static void main(String[] arguments) throws Exception {
    Selector selector = Selector.open();
    ServerSocketChannel listener = ServerSocketChannel.open();
    listener.setOption(StandardSocketOptions.SO_REUSEPORT, true);
    listener.bind(new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0])), 511);
    listener.configureBlocking(false);
    listener.register(selector, SelectionKey.OP_ACCEPT);
    String said = "";
    while (true) {
      selector.select();
      for (Iterator<SelectionKey> keys = selector.selectedKeys().iterator(); keys.hasNext(); ) {
        SelectionKey key = keys.next();
        keys.remove();
        try {
          if (key.isAcceptable()) {
            accept(selector, listener);
          } else {
            ((EchoServer) key.attachment()).read((SocketChannel) key.channel());
          }
        } catch (Exception error) {
          if (key.channel() != listener) {
            key.channel().close();
          } else if (!said.equals(String.valueOf(error.getMessage()))) {
            said = String.valueOf(error.getMessage());
            System.err.println("accept: " + said);
          }
        }
      }
    }
  }

  private static void accept(Selector selector, ServerSocketChannel listener) throws IOException {
    for (SocketChannel each = listener.accept(); each != null; each = listener.accept()) {
      each.configureBlocking(false);
      each.setOption(StandardSocketOptions.TCP_NODELAY, true);
      each.register(selector, SelectionKey.OP_READ, new EchoServer());
    }
  }

  private void read(SocketChannel channel) throws Exception {
    if (channel.read(in) < 0) {
      throw new EOFException();
    }
    in.flip();
    if (!isOpen) {
      upgrade(channel);
    }
    while (isOpen && echo(channel)) {
      // every whole frame that came
    }
    in.compact();
    if (!in.hasRemaining()) {
      if (in.capacity() >= MOST_BYTES) {
        throw new IOException("too long");
      }
      in = ByteBuffer.allocate(2 * in.capacity()).put(in.flip());
    }
  }

  private void upgrade(SocketChannel channel) throws Exception {
    String request = new String(in.array(), 0, in.limit(), StandardCharsets.ISO_8859_1);
    int end = request.indexOf("\r\n\r\n");
    if (end < 0) {
      return;
    }
    String key = "";
    for (String line : request.substring(0, end).split("\r\n")) {
      int colon = line.indexOf(':');
      if (colon > 0 && line.substring(0, colon).equalsIgnoreCase("Sec-WebSocket-Key")) {
        key = line.substring(colon + 1).trim();
      }
    }
    byte[] hash = MessageDigest.getInstance("SHA-1")
        .digest((key + GUID).getBytes(StandardCharsets.ISO_8859_1));
    write(channel, ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
        + "Connection: Upgrade\r\nSec-WebSocket-Accept: "
        + Base64.getEncoder().encodeToString(hash) + "\r\n\r\n")
        .getBytes(StandardCharsets.ISO_8859_1));
    in.position(end + 4);
    isOpen = true;
  }

  /** Answers one frame; false when it is not there yet. RFC 6455, 5.2. */
  private boolean echo(SocketChannel channel) throws IOException {
    int start = in.position();
    if (in.remaining() < 6) {
      return false;
    }
    int first = in.get();
    int length = in.get() & 0x7f;
    if (length == 127) {
      throw new IOException("too long");
    }
    if (length == 126) {
      length = in.getShort() & 0xffff;
    }
    if (in.remaining() < length + 4) {
      in.position(start);
      return false;
    }
    byte[] mask = new byte[4];
    in.get(mask);
    byte[] payload = new byte[length];
    in.get(payload);
    for (int index = 0; index < length; index++) {
      payload[index] ^= mask[index & 3];
    }
    int opcode = first & 0x0f;
    if (opcode == 9) {
      first = first & 0xf0 | 10; // a ping is answered with a pong
    } else if (opcode == 10) {
      return true;
    }
    byte[] head = length < 126
        ? new byte[] {(byte) first, (byte) length}
        : new byte[] {(byte) first, 126, (byte) (length >> 8), (byte) length};
    byte[] answer = new byte[head.length + length];
    System.arraycopy(head, 0, answer, 0, head.length);
    System.arraycopy(payload, 0, answer, head.length, length);
    write(channel, answer);
    if (opcode == 8) {
      throw new EOFException();
    }
    return true;
  }

  private static void write(SocketChannel channel, byte[] data) throws IOException {
    ByteBuffer out = ByteBuffer.wrap(data);
    if (channel.write(out) < data.length) {
      throw new IOException("the send buffer is full");
    }
  }
}
