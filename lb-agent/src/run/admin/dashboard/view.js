// Draws a model into the page. What comes from the edge becomes text and nothing else.

import { line, parts, probes } from './chart.js';
import { condition, serviceCondition } from './model.js';
import { bytes, clock, count, rate, span } from './text.js';

// Rows of backends at a time.
const MOST = 200;
const TILES = [
  ['connections', 'Connections', count],
  ['fresh', 'New clients a second', rate],
  ['bytes', 'Traffic a second', bytes],
  ['drops', 'Dropped packets a second', rate],
];
const PATHS = [
  ['l4', 'l4: XDP alone'],
  ['relay', 'relay: the sidecar'],
  ['splice', 'splice: XDP after a handshake'],
];
const SERVICES = ['Service', 'Listens on', 'State', 'Backends', 'l4', 'relay', 'splice', 'New/s', 'Last minute', 'Traffic/s'];
const BACKENDS = ['Backend', 'Service', 'State', 'Last probes', 'Weight', 'Connections', 'New/s', 'Traffic/s', 'Change'];

const id = (name) => document.getElementById(name);

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function badge(element, { kind, text }) {
  element.className = `badge ${kind}`;
  write(element, text);
}

// A table whose rows stay the same elements while they are about the same: focus stays where it is.
class Table {
  constructor(table, heads, row) {
    this.heads = heads;
    this.row = row;
    this.rows = new Map();
    const titles = heads.map((head) => {
      const title = make('th', { scope: 'col', textContent: head });
      title.setAttribute('role', 'columnheader');
      return title;
    });
    const first = make('tr', {}, ...titles);
    first.setAttribute('role', 'row');
    const head = make('thead', {}, first);
    this.body = make('tbody');
    head.setAttribute('role', 'rowgroup');
    this.body.setAttribute('role', 'rowgroup');
    table.append(head, this.body);
  }

  // [[key, value]] in their order.
  draw(items) {
    const rows = new Map();
    for (const [key, value] of items) {
      const row = this.rows.get(key) ?? this.begin(key, value);
      row.draw(value);
      rows.set(key, row);
    }
    for (const [key, row] of this.rows) if (!rows.has(key)) row.element.remove();
    let at = this.body.firstChild;
    for (const { element } of rows.values()) {
      if (element === at) at = at.nextSibling;
      else this.body.insertBefore(element, at);
    }
    this.rows = rows;
  }

  begin(key, value) {
    const cells = this.heads.map((head) => {
      const cell = make('td');
      cell.dataset.label = head;
      cell.setAttribute('role', 'cell');
      return cell;
    });
    const element = make('tr', {}, ...cells);
    element.setAttribute('role', 'row');
    element.dataset.key = key;
    return { element, draw: this.row(cells, value) };
  }
}

export class View {
  constructor(steer) {
    this.steer = steer;
    this.model = null;
    this.tiles = TILES.map(([, title]) => {
      const [number, chart] = [make('strong'), line()];
      id('tiles').append(make('div', { className: 'panel tile' }, make('span', { textContent: title }), number, chart.svg));
      return { number, chart };
    });
    this.paths = parts();
    this.legend = PATHS.map(([name, title]) => {
      const number = make('strong');
      const label = make('span', { className: `key ${name}`, textContent: title });
      return { number, item: make('li', {}, label, ' ', number) };
    });
    const legend = make('ul', { className: 'legend' }, ...this.legend.map(({ item }) => item));
    id('paths').append(make('h3', { textContent: 'Connections by path' }), this.paths.svg, legend);
    this.services = new Table(id('services'), SERVICES, (cells) => this.serviceRow(cells));
    this.backends = new Table(id('backends'), BACKENDS, (cells, item) => this.backendRow(cells, item));
    for (const name of ['of-service', 'named', 'troubled']) {
      id(name).addEventListener('input', () => this.drawBackends());
    }
  }

  live(kind, text) {
    badge(id('live'), { kind, text });
  }

  draw(model) {
    this.model = model;
    if (!model.edge) return;
    this.drawEdge();
    this.drawNow();
    this.services.draw([...model.services]);
    this.drawChoice();
    this.drawBackends();
    this.drawEvents();
  }

  drawEdge() {
    const { edge } = this.model;
    write(id('edge'), edge.name);
    document.title = `${edge.name} - Sluice`;
    const state = edge.draining ? { kind: 'warn', text: 'draining' } : { kind: 'good', text: 'ready' };
    badge(id('state'), edge.ready ? state : { kind: 'warn', text: 'starting' });
    const workers = edge.workers.length > 0 ? `, ${edge.workers.length} workers` : '';
    write(id('about'), `lb-agent ${edge.version}, pid ${edge.pid}, up for ${span(edge.uptime_seconds)}${workers}`);
    this.notices(edge);
  }

  notices(edge) {
    const all = [];
    if (edge.config_refused) all.push(['bad', `The changed configuration is refused: ${edge.config_refused}`]);
    if (edge.certificates_refused) all.push(['bad', `Changed certificates are refused: ${edge.certificates_refused}`]);
    if (edge.draining) all.push(['warn', `The edge drains: ${count(edge.draining.connections)} connections are left`]);
    for (const it of edge.interfaces) {
      if (!it.attached) all.push(['bad', `${it.name}: no program is attached${it.problem ? `: ${it.problem}` : ''}`]);
    }
    // Those of the handshakes are always full after a while: they forget the oldest.
    for (const it of edge.tables.filter((table) => table.name.startsWith('FLOWS'))) {
      const full = it.capacity > 0 ? it.entries / it.capacity : 0;
      if (full >= 0.8) all.push(['warn', `The table ${it.name} is filled to ${Math.round(full * 100)} %`]);
    }
    for (const service of this.model.services.values()) {
      const { kind, text } = serviceCondition(service);
      if (kind !== 'good') all.push([kind, `${service.name}: ${text}`]);
    }
    // As long as nothing changes, nothing is said again.
    const shown = JSON.stringify(all);
    if (shown === this.noticed) return;
    this.noticed = shown;
    id('notices').replaceChildren(...all.map(([kind, text]) => make('li', { className: kind, textContent: text })));
  }

  drawNow() {
    const { totals, series } = this.model;
    TILES.forEach(([name, title, shown], n) => {
      write(this.tiles[n].number, shown(totals[name]));
      this.tiles[n].chart.draw(series[name], title, shown);
    });
    this.paths.draw(PATHS.map(([name]) => [name, totals[name]]), count);
    PATHS.forEach(([name], n) => write(this.legend[n].number, count(totals[name])));
  }

  serviceRow([name, listens, state, backends, l4, relay, splice, fresh, chart, traffic]) {
    const [link, mark, drawing] = [make('button', { type: 'button', className: 'name' }), make('span'), line()];
    link.addEventListener('click', () => this.choose(link.textContent));
    name.append(link);
    state.append(mark);
    chart.append(drawing.svg);
    return (service) => {
      write(link, service.name);
      link.setAttribute('aria-label', `${service.name}: show its backends`);
      write(listens, `${service.listeners.join(' ')} (${service.forward ?? service.mode})`);
      badge(mark, serviceCondition(service));
      const taking = service.backends.filter((it) => it.effective_weight > 0).length;
      write(backends, `${taking}/${service.backends.length}`);
      write(l4, count(service.paths.l4));
      write(relay, count(service.paths.relay));
      write(splice, count(service.paths.splice));
      const own = this.model.rates.get(service.name);
      write(fresh, rate(own.fresh));
      drawing.draw(own.series, `${service.name}, new clients a second`, rate);
      write(traffic, bytes(own.bytes));
    };
  }

  // The backends of a service, and the keyboard's focus there.
  choose(service) {
    id('of-service').value = service;
    this.drawBackends();
    id('backends-title').focus();
  }

  drawChoice() {
    const names = ['', ...this.model.services.keys()];
    const options = [...id('of-service').options].map((option) => option.value);
    if (names.join('\0') === options.join('\0')) return;
    const chosen = id('of-service').value;
    const made = names.map((name) => make('option', { value: name, textContent: name || 'all' }));
    id('of-service').replaceChildren(...made);
    id('of-service').value = names.includes(chosen) ? chosen : '';
  }

  drawBackends() {
    if (!this.model?.edge) return;
    const [of, named] = [id('of-service').value, id('named').value.trim().toLowerCase()];
    const wanted = [];
    for (const service of this.model.services.values()) {
      if (of && service.name !== of) continue;
      for (const backend of service.backends) {
        const text = `${backend.name} ${backend.address}`.toLowerCase();
        if (named && !text.includes(named)) continue;
        if (id('troubled').checked && condition(backend).kind === 'good') continue;
        wanted.push([JSON.stringify([service.name, backend.name]), { service, backend }]);
      }
    }
    this.backends.draw(wanted.slice(0, MOST));
    const beyond = wanted.length - MOST;
    id('more').hidden = beyond <= 0;
    write(id('more'), `and ${count(Math.max(beyond, 0))} more: choose a service, or name one`);
    id('backends').classList.toggle('steered', this.steer.isAllowed());
    id('read-only').hidden = this.steer.changes !== 'none';
    write(id('read-only'), 'Changes are not allowed here: [edge] admin_token_file is not set. `lb-agent drain` works on the edge itself.');
  }

  backendRow([name, of, state, history, weight, connections, fresh, traffic, change], { service, backend }) {
    const [title, at] = [make('span', { className: 'title' }), make('span', { className: 'note' })];
    const [mark, why, drawing, took] = [make('span'), make('span', { className: 'note' }), probes(), make('span', { className: 'note' })];
    const own = { service: service.name, backend: backend.name };
    const button = (action, text) => {
      const made = make('button', { type: 'button', textContent: text });
      made.setAttribute('aria-label', `${text} ${own.backend} of ${own.service}`);
      made.addEventListener('click', () => this.steer.ask(own.service, own.backend, action));
      return made;
    };
    const [drain, rest, undrain] = [button('drain', 'Drain'), button('maintenance', 'Maintenance'), button('undrain', 'Undrain')];
    name.append(title, at);
    state.append(mark, why);
    history.append(drawing.svg, took);
    change.append(drain, rest, undrain);
    return ({ service, backend }) => {
      write(title, backend.name);
      write(at, backend.address);
      write(of, backend.pool ? `${service.name}, ${backend.pool}` : service.name);
      const now = condition(backend);
      badge(mark, now);
      const until = backend.draining_until > Date.now() ? `, until ${clock(backend.draining_until)}` : '';
      write(why, now.kind === 'good' ? '' : `${backend.why}${until}`);
      drawing.draw(backend.history);
      write(took, backend.latency_ms == null ? '' : `${backend.latency_ms} ms`);
      const slow = backend.effective_weight > 0 && backend.effective_weight < backend.weight;
      write(weight, slow ? `${backend.effective_weight} of ${backend.weight}` : `${backend.weight}`);
      write(connections, count(backend.connections));
      const rates = this.model.rates.get(service.name).backends.get(backend.name);
      write(fresh, rate(rates.fresh));
      write(traffic, bytes(rates.bytes));
      const [allowed, drains] = [this.steer.isAllowed(), backend.draining_until != null];
      [drain.hidden, rest.hidden, undrain.hidden] = [!allowed || drains, !allowed || drains, !allowed || !drains];
      // The keyboard's focus goes on to what is there instead.
      const focus = document.activeElement;
      if ([drain, rest, undrain].includes(focus) && focus.hidden) (drains ? undrain : drain).focus();
    };
  }

  drawEvents() {
    const { events } = this.model;
    const newest = events[0]?.id;
    if (newest === this.newest) return;
    this.newest = newest;
    const items = events.map((event) => {
      const about = [event.service, event.backend].filter(Boolean).join(' / ');
      const time = make('time', { dateTime: new Date(event.time).toISOString(), textContent: clock(event.time) });
      const kind = make('span', { className: 'kind', textContent: event.kind.replaceAll('_', ' ') });
      return make('li', {}, time, kind, make('span', { className: 'about', textContent: about }), make('span', { textContent: event.text }));
    });
    id('events').replaceChildren(...items);
  }
}
