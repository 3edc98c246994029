// stands_still.cjs KIND SECONDS COUNT PORT: as stands_still.py, in Node: sleep, calculate, flush.
"use strict";
const { createHash } = require("node:crypto");
const fs = require("node:fs");
const http = require("node:http");
const os = require("node:os");
const path = require("node:path");

const [, , kind, seconds, count, port] = process.argv;
const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
let left = Number(count);

const still = {
  sleep(ms) {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
  },
  calculate(ms) {
    for (const until = performance.now() + ms; performance.now() < until; );
  },
  flush(ms) {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), "still-"));
    const file = fs.openSync(path.join(folder, "log"), "w");
    fs.rmSync(folder, { recursive: true });
    for (const until = performance.now() + ms; performance.now() < until; ) {
      fs.writeSync(file, "x".repeat(4096));
      fs.fsyncSync(file);
    }
    fs.closeSync(file);
  },
};

const server = http.createServer();
server.on("upgrade", (request, socket) => {
  const key = request.headers["sec-websocket-key"] + GUID;
  const accept = createHash("sha1").update(key).digest("base64");
  socket.write(
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
      `Sec-WebSocket-Accept: ${accept}\r\n\r\n`,
  );
  socket.on("error", () => {});
  socket.resume();
  left -= 1;
  if (left === 0) still[kind](1000 * Number(seconds));
});
server.listen({ port: Number(port), host: "127.0.0.1", backlog: 1024 });
