'use strict';
// A chat backend as applications are written: HTTP, WebSocket (ws) and Socket.IO on one port.
//
//   node server.js NAME PORT
//
// Says "NAME: listening" when it is ready, and "NAME: report JSON" when a page has reported.

const { createHash } = require('node:crypto');
const { readFileSync } = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const { Server } = require('socket.io');
const { WebSocketServer } = require('ws');

const [name, port] = process.argv.slice(2);
const page = readFileSync(path.join(__dirname, 'page.html'));

const LARGEST_UPLOAD = 64 << 20;
const LARGE = Buffer.alloc(1 << 20, 'x');

/** Answers with what came: the request as this side has understood it. */
function echo(request, response, continued) {
  const sum = createHash('sha256');
  let bytes = 0;
  request.on('data', (chunk) => {
    bytes += chunk.length;
    if (bytes > LARGEST_UPLOAD) request.destroy();
    sum.update(chunk);
  });
  request.on('end', () => {
    const body = JSON.stringify({
      backend: name,
      method: request.method,
      url: request.url,
      version: request.httpVersion,
      headers: request.headers,
      trailers: request.trailers,
      continued,
      bytes,
      sha256: sum.digest('hex'),
    });
    response.setHeader('content-type', 'application/json');
    response.setHeader('content-length', Buffer.byteLength(body));
    response.end(body);
  });
}

/** A response in `pieces` writes; chunked and with a trailer if the client knows chunks. */
function stream(request, response, pieces) {
  const sum = createHash('sha256');
  const chunked = request.httpVersion === '1.1';
  response.writeHead(200, chunked ? { trailer: 'x-sum' } : {});
  const next = (n) => {
    if (n === pieces) {
      if (chunked) response.addTrailers({ 'x-sum': sum.digest('hex') });
      response.end();
      return;
    }
    const piece = `piece ${n} of ${pieces}\n`.repeat(100);
    sum.update(piece);
    response.write(piece, () => setImmediate(next, n + 1));
  };
  next(0);
}

function answer(request, response, continued) {
  const url = new URL(request.url, 'http://backend');
  response.setHeader('x-backend', name);
  switch (url.pathname) {
    case '/echo':
      return echo(request, response, continued);
    case '/stream':
      return stream(request, response, Number(url.searchParams.get('pieces')));
    case '/large':
      return response.end(LARGE);
    case '/hints':
      response.writeEarlyHints({ link: '</page>; rel=preload; as=document' });
      return response.end(`${name}\n`);
    case '/nothing':
      return response.writeHead(204).end();
    case '/page':
      response.setHeader('content-type', 'text/html; charset=utf-8');
      return response.end(page);
    case '/report': {
      let body = '';
      request.on('data', (chunk) => (body += chunk));
      request.on('end', () => {
        console.log(`${name}: report ${body}`);
        response.end();
      });
      return undefined;
    }
    default:
      return response.writeHead(404).end(`${name}: no ${url.pathname}\n`);
  }
}

const server = http.createServer((request, response) => answer(request, response, false));
server.on('checkContinue', (request, response) => {
  if (request.url === '/refused') {
    // The client must not send its body.
    response.setHeader('x-backend', name);
    response.writeHead(413, { connection: 'close' }).end();
    return;
  }
  response.writeContinue();
  answer(request, response, true);
});

// Messages that name a size are answered with so many bytes, "close CODE" is done, all others are echoed.
const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: { threshold: 512 } });
sockets.on('headers', (headers) => headers.push(`x-backend: ${name}`));
sockets.on('connection', (socket) => {
  socket.send(`hello ${name}`);
  socket.on('message', (data, binary) => {
    const [verb, argument] = binary ? [] : data.toString().split(' ');
    if (verb === 'close') socket.close(Number(argument), 'as you wish');
    else if (verb === 'size') socket.send(Buffer.alloc(Number(argument), 'x'));
    else socket.send(data, { binary });
  });
});

const io = new Server(server, { destroyUpgrade: false, cors: { origin: true, credentials: true } });
io.on('connection', (socket) => {
  socket.emit('hello', name);
  socket.on('echo', (value, acknowledge) => acknowledge(name, value));
  socket.on('say', (text) => io.emit('said', name, text));
});

server.on('upgrade', (request, socket, head) => {
  const { pathname } = new URL(request.url, 'http://backend');
  if (pathname.startsWith('/socket.io/')) return;
  if (pathname !== '/ws') {
    socket.end('HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n');
    return;
  }
  sockets.handleUpgrade(request, socket, head, (ws) => sockets.emit('connection', ws));
});

server.listen(Number(port), '::', () => console.log(`${name}: listening`));
