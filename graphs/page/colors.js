// The canvas's colours: the page's variables, which follow the system's choice of light or dark, and the ramp that
// stands for influence, whose lightness goes one way only so that it can be read without seeing hues.

const NAMES = ["page", "ink", "soft", "band", "line", "faint", "focus", "positive", "negative", "feature", "error",
  "embedding", "logit", "constant"];
const STOPS = ["ramp-0", "ramp-1", "ramp-2", "ramp-3", "ramp-4"];
const STEPS = 16; // colours that the canvas uses of the ramp

/** {name: colour} and `ramp`, a list of colours from none to the most influence. */
export function colorsOf(view) {
  const style = getComputedStyle(view);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  const stops = STOPS.map((name) => read(name).match(/[\da-f]{2}/gi).map((part) => Number.parseInt(part, 16)));
  return { ...Object.fromEntries(NAMES.map((name) => [name, read(name)])),
    ramp: Array.from({ length: STEPS }, (_, step) => between(stops, step / (STEPS - 1))) };
}

/** The ramp's colour for a share in [0, 1] of the most influence: by its square root, as the radius. */
export function rampColor({ ramp }, share) {
  return ramp[Math.round(Math.sqrt(Math.min(1, Math.max(0, share || 0))) * (ramp.length - 1))];
}

function between(stops, place) {
  const first = Math.min(stops.length - 2, Math.floor(place * (stops.length - 1)));
  const part = place * (stops.length - 1) - first;
  const mixed = stops[first].map((value, i) => Math.round(value + part * (stops[first + 1][i] - value)));
  return `rgb(${mixed.join(" ")})`;
}
