// Prints its port; understands the words of the EchoServer in conftest.py.
'use strict';
const { WebSocketServer } = require('ws');

const server = new WebSocketServer({ host: '127.0.0.1', port: 0 });
server.on('listening', () => console.log(server.address().port));
server.on('connection', (socket) => {
  socket.on('error', () => {}); // a violation; ws has answered it
  socket.on('pong', (data) => socket.send(`pong ${data}`));
  socket.on('message', (data, isBinary) => {
    const words = isBinary ? [] : String(data).split(' ');
    if (words[0] === 'close') socket.close(Number(words[1]), words[2]);
    else if (words[0] === 'ping') socket.ping('from-server');
    else if (words[0] === 'violate') socket.send('bad', { mask: true });
    else if (words[0] === 'fragments') {
      const text = Buffer.from('Gr\u00fc\u00dfe');
      socket.send(text.subarray(0, 3), { binary: false, fin: false });
      socket.ping('between');
      socket.send(text.subarray(3), { binary: false, fin: true });
    } else socket.send(data, { binary: isBinary });
  });
});
