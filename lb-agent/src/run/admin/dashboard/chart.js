// Small drawings in SVG. Each has a text that says the same.

import { POINTS } from './model.js';

const SVG = 'http://www.w3.org/2000/svg';
const [WIDTH, HEIGHT] = [120, 32];
// Probes of a history.
const PROBES = 40;
const BAR = 3;
const TALL = 20;

function node(name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function picture(kind, width, height) {
  // Stretched to its place; its lines are not.
  const svg = node('svg', { viewBox: `0 0 ${width} ${height}`, class: kind, role: 'img', preserveAspectRatio: 'none' });
  svg.append(node('title'));
  return svg;
}

function say(svg, text) {
  const title = svg.firstChild;
  if (title.textContent !== text) title.textContent = text;
  if (svg.getAttribute('aria-label') !== text) svg.setAttribute('aria-label', text);
}

// The last minute, the newest to the right.
export function line() {
  const svg = picture('line', WIDTH, HEIGHT);
  const [area, stroke] = [node('path', { class: 'area' }), node('path', { class: 'stroke' })];
  svg.append(area, stroke);
  return {
    svg,
    draw(series, what, shown) {
      const most = Math.max(...series, 0);
      const x = (n) => ((n + POINTS - series.length) * WIDTH) / (POINTS - 1);
      const y = (value) => HEIGHT - 1 - (most > 0 ? (value / most) * (HEIGHT - 3) : 0);
      const points = series.map((value, n) => `${x(n).toFixed(1)},${y(value).toFixed(1)}`);
      const path = points.length > 0 ? `M${points.join('L')}` : '';
      stroke.setAttribute('d', path);
      area.setAttribute('d', path && `${path}L${WIDTH},${HEIGHT}L${x(0).toFixed(1)},${HEIGHT}Z`);
      svg.dataset.points = series.length;
      const now = series.length > 0 ? shown(series[series.length - 1]) : 'not known yet';
      say(svg, `${what}: now ${now}, at most ${shown(most)} in the last ${series.length} s`);
    },
  };
}

// The last probes of a backend: the longer one took, the higher its bar; one that failed is as high as can be.
export function probes() {
  const svg = picture('probes', PROBES * BAR, TALL);
  const [good, bad] = [node('path', { class: 'good' }), node('path', { class: 'bad' })];
  svg.append(good, bad);
  let drawn = null;
  return {
    svg,
    draw(history) {
      if (history === drawn) return;
      drawn = history;
      const paths = { good: '', bad: '' };
      let failed = 0;
      [...history].forEach((mark, n) => {
        const left = (n + PROBES - history.length) * BAR;
        const high = mark === 'x' ? TALL : 4 + Number(mark) * 1.6;
        failed += mark === 'x';
        paths[mark === 'x' ? 'bad' : 'good'] += `M${left},${TALL}v${-high}h${BAR - 1}v${high}z`;
      });
      good.setAttribute('d', paths.good);
      bad.setAttribute('d', paths.bad);
      say(svg, history.length > 0 ? `the last ${history.length} probes: ${failed} failed` : 'no probe yet');
    },
  };
}

// Parts of a whole, side by side: [[name, value]].
export function parts() {
  const svg = picture('parts', 100, 6);
  return {
    svg,
    draw(values, shown) {
      const whole = values.reduce((sum, [, value]) => sum + value, 0);
      let left = 0;
      for (const [name, value] of values) {
        const width = whole > 0 ? (value / whole) * 100 : 0;
        let rect = svg.querySelector(`.${name}`);
        if (!rect) svg.append((rect = node('rect', { class: name, y: 0, height: 6 })));
        rect.setAttribute('x', left);
        rect.setAttribute('width', width);
        left += width;
      }
      say(svg, values.map(([name, value]) => `${name} ${shown(value)}`).join(', '));
    },
  };
}
