// The edge as the stream tells it, and what can be reckoned from one second to the next. Knows nothing of the page.

// Seconds that charts show.
export const POINTS = 60;
// After a longer silence there is no saying what happened meanwhile.
const LONGEST_GAP = 10_000;
const EVENTS = 50;

function add(series, value) {
  series.push(value);
  if (series.length > POINTS) series.shift();
}

// A second. Counters begin anew with whoever counts.
function perSecond(now, before, seconds) {
  return Math.max(0, now - before) / seconds;
}

// What is wrong with a backend, or on its way out: `bad`, `warn`, or `good`.
export function condition(backend) {
  if (backend.draining_until != null) return { kind: 'warn', text: 'draining' };
  if (backend.health === 'down') return { kind: 'bad', text: 'down' };
  if (backend.ejected) return { kind: 'bad', text: 'ejected' };
  if (backend.health === 'unknown') return { kind: 'warn', text: 'unknown' };
  if (backend.weight === 0) return { kind: 'warn', text: 'weight 0' };
  return { kind: 'good', text: 'up' };
}

export function serviceCondition(service) {
  if (service.turned_away) return { kind: 'bad', text: 'clients are turned away' };
  if (service.fail_open) return { kind: 'bad', text: 'failing open' };
  if (service.pools_down.length > 0) return { kind: 'bad', text: `pools down: ${service.pools_down.join(', ')}` };
  if (service.spilling) return { kind: 'warn', text: 'other zones help' };
  return { kind: 'good', text: 'ok' };
}

export class Model {
  constructor() {
    this.edge = null;
    this.services = new Map();
    this.events = [];
    this.at = 0;
    this.totals = { connections: 0, l4: 0, relay: 0, splice: 0, fresh: 0, bytes: 0, drops: 0 };
    this.series = { connections: [], fresh: [], bytes: [], drops: [] };
    // Of services by name: { fresh, bytes, series }; of backends likewise, below their services.
    this.rates = new Map();
  }

  // Everything, or what has changed.
  take(message, whole) {
    const gap = message.at - this.at;
    const before = gap > 0 && gap < LONGEST_GAP ? this.services : new Map();
    const dropsBefore = before.size > 0 ? this.edge.drops : message.edge.drops;
    const services = new Map(whole ? [] : this.services);
    for (const service of message.services) services.set(service.name, service);
    const known = whole ? new Set() : new Set(this.events.map((event) => event.id));
    const news = message.events.filter((event) => !known.has(event.id)).reverse();
    this.events = (whole ? news : news.concat(this.events)).slice(0, EVENTS);
    this.services = services;
    this.edge = message.edge;
    this.at = message.at;
    this.reckon(before, gap / 1000, dropsBefore);
  }

  reckon(before, seconds, dropsBefore) {
    const totals = { connections: 0, l4: 0, relay: 0, splice: 0, fresh: 0, bytes: 0, drops: 0 };
    const rates = new Map();
    for (const [name, service] of this.services) {
      const earlier = new Map((before.get(name)?.backends ?? []).map((it) => [it.name, it]));
      const old = this.rates.get(name);
      const own = { fresh: 0, bytes: 0, series: old?.series ?? [], backends: new Map() };
      for (const backend of service.backends) {
        const then = earlier.get(backend.name) ?? backend;
        const fresh = perSecond(backend.picked, then.picked, seconds);
        const moved = perSecond(backend.bytes, then.bytes, seconds);
        own.backends.set(backend.name, { fresh, bytes: moved });
        own.fresh += fresh;
        own.bytes += moved;
      }
      if (before.has(name)) add(own.series, own.fresh);
      rates.set(name, own);
      for (const path of ['l4', 'relay', 'splice']) totals[path] += service.paths[path];
      totals.fresh += own.fresh;
      totals.bytes += own.bytes;
    }
    totals.connections = totals.l4 + totals.relay + totals.splice;
    totals.drops = before.size > 0 ? perSecond(this.edge.drops, dropsBefore, seconds) : 0;
    this.rates = rates;
    this.totals = totals;
    if (before.size === 0) return;
    for (const name of Object.keys(this.series)) add(this.series[name], totals[name]);
  }
}
