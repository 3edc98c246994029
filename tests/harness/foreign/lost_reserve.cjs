// A WebSocket echo server that, at its descriptor limit, loses libuv's reserve descriptor.
//
//   node lost_reserve.cjs PORT
//
// At EMFILE libuv closes a descriptor that it keeps in reserve, accepts and closes what waits, and
// opens the reserve again (uv__emfile_trick in its src/unix/stream.c). A thread that opens a file
// between that close and that open has the place of the reserve: from then on accept4 fails for
// ever, and the listener stays readable.
'use strict';
const fs = require('node:fs');
const { Worker, isMainThread } = require('node:worker_threads');

if (isMainThread) {
  const { WebSocketServer } = require('ws');
  const server = new WebSocketServer({ port: Number(process.argv[2]), host: '127.0.0.1' });
  server.on('connection', (socket) => {
    socket.on('error', () => {});
    socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
  });
  server.on('error', () => {}); // a listener that fails is no reason to end
  new Worker(__filename);
} else {
  readNowAndThen();
}

// A worker that reads a file now and then and, when it cannot, tries again at once.
function readNowAndThen() {
  let fd = open();
  if (fd >= 0) {
    fs.closeSync(fd);
    setTimeout(readNowAndThen, 2);
    return;
  }
  const until = Date.now() + 5000;
  while (fd < 0 && Date.now() < until) fd = open();
  setInterval(() => {}, 1000); // what it got stays open as long as the thread lives
}

function open() {
  try {
    return fs.openSync('/dev/null', 'r');
  } catch {
    return -1;
  }
}
