'use strict';
// Clients with socket.io-client: each opens a session by polling, upgrades it, and asks who answers.
//
//   node socketio.js http://HOST:PORT CLIENTS TRANSPORTS
//
// TRANSPORTS is what the clients may use, as in `polling,websocket`. Prints a line of JSON: of each client the
// backends that answered, the last transport and the errors. Whether they are as they should be is for the caller.

const http = require('node:http');
const { isIP } = require('node:net');
const { setTimeout: sleep } = require('node:timers/promises');
const { io } = require('socket.io-client');

const [url, clients, transports] = process.argv.slice(2);
// They know the server by a name: of an IPv6 address their XMLHttpRequest makes a Host without brackets, which a
// server has to refuse (RFC 9112, 3.2).
const NAME = 'chat.test';
const address = new URL(url).hostname.replace(/[[\]]/g, '');

/** Knows one name, and keeps connections as a browser does. */
function agent() {
  const found = { address, family: isIP(address) };
  const lookup = (_, { all }, done) => (all ? done(null, [found]) : done(null, found.address, found.family));
  return new http.Agent({ keepAlive: true, lookup });
}

const PATIENCE = 20_000;
const MESSAGES = 10;

/** What a failed connection says of itself: the message, the status and the body of the answer. */
function described(error) {
  const status = typeof error.description === 'number' ? error.description : undefined;
  const body = error.context?.responseText;
  return [error.message, status, body].filter((it) => it !== undefined).join(': ');
}

function client(number) {
  const seen = { backends: [], transport: undefined, said: 0, errors: [] };
  const allowed = transports.split(',');
  // The cookies of the first answer come back with every further request, as in a browser.
  const named = url.replace(new URL(url).hostname, NAME);
  const socket = io(named, {
    transports: allowed,
    withCredentials: true,
    forceNew: true,
    reconnection: false,
    agent: agent(),
  });
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      seen.transport = socket.io.engine?.transport.name;
      socket.disconnect();
      resolve(seen);
    };
    const failed = (why) => {
      seen.errors.push(why);
      done();
    };
    const timer = setTimeout(() => failed('not done in time'), PATIENCE);
    socket.on('connect_error', (error) => failed(described(error)));
    socket.io.engine.on('upgradeError', (error) => seen.errors.push(`upgrade: ${error.message}`));
    socket.on('hello', (backend) => seen.backends.push(backend));
    socket.on('disconnect', (reason, details) => {
      if (reason !== 'io client disconnect') failed(`${reason}: ${details ? described(details) : ''}`);
    });

    const talk = async () => {
      // A person reads before it writes; then the edge may hand the connection over.
      await sleep(500);
      for (let n = 0; n < MESSAGES; n++) {
        const value = { client: number, n, bytes: Buffer.alloc(2000, n) };
        const [backend, echoed] = await new Promise((answered) =>
          socket.emit('echo', value, (...answer) => answered(answer)));
        seen.backends.push(backend);
        if (echoed.n !== n || !value.bytes.equals(Buffer.from(echoed.bytes))) seen.errors.push('a wrong echo');
      }
      const mine = `client ${number} was here`;
      socket.on('said', (_, text) => {
        if (text !== mine) return;
        seen.said += 1;
        done();
      });
      socket.emit('say', mine);
    };
    const mayUpgrade = allowed.length > 1;
    socket.on('connect', () => {
      // Some messages before the upgrade are part of it: the rest is said over the new transport.
      if (mayUpgrade && socket.io.engine.transport.name === 'polling') socket.io.engine.once('upgrade', talk);
      else talk();
    });
  });
}

Promise.all(Array.from({ length: Number(clients) }, (_, n) => client(n))).then((seen) => {
  console.log(JSON.stringify(seen));
  process.exit(0);
});
