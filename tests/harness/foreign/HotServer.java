import java.io.IOException;

/**
 * An EchoServer with a thread beside it that computes for ever: PORT [map]. With {@code map} it has
 * its perf map written with jcmd, once its functions are compiled.
 */
public final class HotServer {
  private static volatile long sum;

  public static void main(String[] arguments) throws Exception {
    boolean isMapped = arguments.length > 1;
    Thread busy = new Thread(() -> turnForever(isMapped), "busy-turns");
    busy.setDaemon(true);
    busy.start();
    EchoServer.main(arguments);
  }

  private static void turnForever(boolean isMapped) {
    for (int turn = 0; ; turn++) {
      sum += turn(30_000, turn);
      if (isMapped && (turn == 20_000 || turn == 40_000)) { // compiled for good by then
        writeMap();
      }
    }
  }

  private static long turn(int steps, long value) {
    for (int step = 0; step < steps; step++) { // xorshift: nothing for a compiler to leave out
      value ^= value << 13;
      value ^= value >>> 7;
      value ^= value << 17;
    }
    return value;
  }

  private static void writeMap() {
    try {
      String pid = String.valueOf(ProcessHandle.current().pid());
      new ProcessBuilder("jcmd", pid, "Compiler.perfmap").inheritIO().start().waitFor();
    } catch (IOException | InterruptedException error) {
      throw new IllegalStateException(error);
    }
  }
}
