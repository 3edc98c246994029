// full_heap.cjs PORT BYTES: keeps objects of about so many bytes for each connection, so that the
// heap of V8 is full at some number of them.
'use strict';
const crypto = require('crypto');
const http = require('http');
const kept = [];
const server = http.createServer((request, response) => response.writeHead(426).end());
server.on('upgrade', (request, socket) => {
  socket.on('error', () => socket.destroy());
  const history = [];
  for (let i = 0; i < Number(process.argv[3]) / 100; i++) history.push({ at: i + 0.5, text: `line ${i}` });
  kept.push(history);
  const token = crypto.createHash('sha1').update(request.headers['sec-websocket-key'] +
    '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest('base64');
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
    `Sec-WebSocket-Accept: ${token}\r\n\r\n`);
});
server.listen(Number(process.argv[2]), '127.0.0.1', 2048);
