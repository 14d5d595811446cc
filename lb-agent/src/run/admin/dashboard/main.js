// Listens to the edge and has the page drawn.

import { Model } from './model.js';
import { Steer } from './steer.js';
import { View } from './view.js';

// Milliseconds without a word after which what is shown is called old, and after which a lost edge is tried again.
const SILENCE = 5000;
const AGAIN = 5000;

let model = new Model();
let stream = null;
let heard = 0;
let retry = null;
let program = null;

const steer = new Steer(() => view.draw(model));
const view = new View(steer);

function take(event, whole) {
  heard = Date.now();
  const message = JSON.parse(event.data);
  // Another agent may have come with another page.
  if (program !== null && program !== message.edge.version) location.reload();
  program = message.edge.version;
  model.take(message, whole);
  view.live('good', 'live');
  view.draw(model);
}

function listen() {
  clearTimeout(retry);
  stop();
  stream = new EventSource('/v1/stream');
  stream.addEventListener('hello', (event) => steer.setChanges(JSON.parse(event.data).changes));
  stream.addEventListener('state', (event) => take(event, true));
  stream.addEventListener('change', (event) => take(event, false));
  stream.addEventListener('error', () => {
    view.live('bad', 'not connected');
    // The browser tries again by itself only where the edge did not answer.
    if (stream && stream.readyState === EventSource.CLOSED) refused();
  });
}

function stop() {
  if (stream) stream.close();
  stream = null;
}

// An event source does not tell why it was refused.
async function refused() {
  stop();
  retry = setTimeout(listen, AGAIN);
  const asked = new AbortController();
  try {
    const answer = await fetch('/v1/stream', { signal: asked.signal });
    if (!answer.ok) view.live('bad', (await answer.json()).error);
  } catch {
    view.live('bad', 'the edge does not answer');
  } finally {
    asked.abort();
  }
}

setInterval(() => {
  if (stream?.readyState === EventSource.OPEN && heard > 0 && Date.now() - heard > SILENCE) {
    view.live('bad', `nothing new for ${Math.round((Date.now() - heard) / 1000)} s`);
  }
}, 1000);

// Nobody looks: the edge need not tell, and others may watch.
document.addEventListener('visibilitychange', () => {
  if (document.visibilityState === 'hidden') {
    clearTimeout(retry);
    stop();
    view.live('warn', 'paused');
  } else if (!stream) {
    listen();
  }
});

listen();
