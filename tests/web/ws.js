'use strict';
// A client with npm's ws: chats in several sessions, one after the other, and keeps the cookies between them.
//
//   node ws.js ws://HOST:PORT SESSIONS     (or wss://)
//
// Prints what it saw as JSON; ends with 1 and a reason if an answer is wrong.

const assert = require('node:assert');
const { once } = require('node:events');
const { setTimeout: sleep } = require('node:timers/promises');
const WebSocket = require('ws');

const [url, sessions] = process.argv.slice(2);
setTimeout(() => fail(new Error('not done in time')), 60_000).unref();

function fail(error) {
  console.error(error);
  process.exit(1);
}

/** Waits for messages one by one, also for those that came before anybody waited. */
class Chat {
  constructor(headers) {
    this.socket = new WebSocket(`${url}/ws`, { headers, perMessageDeflate: true });
    this.inbox = [];
    this.waiting = [];
    this.socket.on('message', (data, binary) => {
      const message = binary ? data : data.toString();
      const waiting = this.waiting.shift();
      if (waiting) waiting(message);
      else this.inbox.push(message);
    });
    this.upgraded = new Promise((resolve, reject) => {
      this.socket.on('upgrade', resolve);
      this.socket.on('error', reject);
    });
  }

  next() {
    if (this.inbox.length > 0) return Promise.resolve(this.inbox.shift());
    return new Promise((resolve) => this.waiting.push(resolve));
  }

  async echoed(message, options = {}) {
    this.socket.send(message, options);
    const answer = await this.next();
    assert.deepStrictEqual(answer, message);
  }
}

async function session(cookie, closeByServer) {
  const chat = new Chat(cookie ? { cookie } : {});
  const response = await chat.upgraded;
  const hello = await chat.next();
  const backend = response.headers['x-backend'];
  assert.strictEqual(hello, `hello ${backend}`);
  // A person reads before it writes; then the edge may hand the connection over.
  await sleep(500);

  for (const length of [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20]) {
    await chat.echoed(Buffer.alloc(length, length));
    await chat.echoed('ü'.repeat(length >> 1));
  }
  await chat.echoed(Buffer.alloc(70_000, 1), { compress: false });
  // One message in three fragments.
  chat.socket.send('one, ', { fin: false });
  chat.socket.send('two, ', { fin: false });
  chat.socket.send('three', { fin: true });
  assert.strictEqual(await chat.next(), 'one, two, three');
  chat.socket.send('size 3000000');
  assert.strictEqual((await chat.next()).length, 3_000_000);
  chat.socket.ping('are you there?');
  const [pong] = await once(chat.socket, 'pong');
  assert.strictEqual(pong.toString(), 'are you there?');

  if (closeByServer) chat.socket.send('close 4005');
  else chat.socket.close(4006, 'I have to go');
  const [code, reason] = await once(chat.socket, 'close');
  assert.strictEqual(code, closeByServer ? 4005 : 4006);
  if (closeByServer) assert.strictEqual(reason.toString(), 'as you wish');
  return { backend, extensions: chat.socket.extensions, cookies: response.headers['set-cookie'] ?? [] };
}

async function main() {
  const seen = [];
  let cookie;
  for (let n = 0; n < Number(sessions); n++) {
    const one = await session(cookie, n % 2 === 0);
    if (one.cookies.length > 0) cookie = one.cookies.map((it) => it.split(';')[0]).join('; ');
    seen.push(one);
  }
  console.log(JSON.stringify(seen));
}

main().then(() => process.exit(0), fail);
