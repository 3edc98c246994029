// node [--max-old-space-size=MiB] collects.cjs PORT [MiB]: a WebSocket echo server that keeps MiB
// (150) of small objects alive and replaces many of them for each message, as a cache does that is
// as large as its heap allows. What that costs is not its code's time but the collector's. A block to
// compress for every second message gives libuv's pool something to do beside it. A client that opens
// /collect sets the same going without messages, for as long as it stays.
'use strict';
const zlib = require('zlib');
const { WebSocketServer } = require('ws');

const KEPT = Number(process.argv[3] || 150) * 7000; // objects of about 150 bytes
const REPLACED = 4000;
const kept = new Array(KEPT);
let next = 0;

function replaceSome(count) {
  for (let i = 0; i < count; i++) {
    kept[next] = { next, list: [next, { next }] };
    next = (next + 7919) % KEPT; // spread, so that old pages are never all garbage
  }
}

for (let i = 0; i < KEPT; i++) kept[i] = { next: i, list: [i, { next: i }] };

const block = Buffer.from(Array.from({ length: 1 << 18 }, (_, i) => (i * i * i) >> 7));
let messages = 0;
const server = new WebSocketServer({ port: Number(process.argv[2]), host: '127.0.0.1' });
server.on('connection', (socket, request) => {
  socket.on('error', () => {});
  if (request.url === '/collect') {
    const timer = setInterval(replaceSome, 0, REPLACED);
    socket.on('close', () => clearInterval(timer));
  }
  socket.on('message', (data, isBinary) => {
    replaceSome(REPLACED);
    if (messages++ % 2 === 0) zlib.deflate(block, { level: 9 }, () => {});
    socket.send(data, { binary: isBinary });
  });
});
