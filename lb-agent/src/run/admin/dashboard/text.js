// Numbers and times as people read them.

const BYTES = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

export function count(value) {
  return Math.round(value).toLocaleString('en');
}

// A rate: small ones with a decimal place.
export function rate(value) {
  return value > 0 && value < 10 ? value.toFixed(1) : count(value);
}

export function bytes(value) {
  let unit = 0;
  while (value >= 1024 && unit + 1 < BYTES.length) {
    value /= 1024;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${BYTES[unit]}`;
}

export function span(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor(seconds / 3600) % 24} h`;
}

// In the browser's time zone, to the second.
export function clock(millis) {
  return new Date(millis).toLocaleTimeString('en-GB');
}
