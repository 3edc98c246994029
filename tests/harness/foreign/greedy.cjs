// node greedy.cjs PORT: echoes. Its thread pool opens one file as soon as there is a descriptor, so at
// the limit it takes the one that libuv gives up for a moment to accept and close. From then on
// accept fails for ever.
'use strict';
const fs = require('node:fs');
const { WebSocketServer } = require('ws');
const server = new WebSocketServer({ port: Number(process.argv[2]), host: '127.0.0.1' });
server.on('connection', (socket) => {
  socket.on('error', () => {});
  socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
});
let taken = 0;
function take() {
  fs.open('/dev/null', 'r', (error) => {
    if (!error) taken += 1;
    if (taken < 1) setImmediate(take);
  });
}
const look = setInterval(() => {
  try {
    fs.closeSync(fs.openSync('/dev/null', 'r'));
  } catch {
    clearInterval(look);
    for (let index = 0; index < 4; index += 1) take();
  }
}, 5);
