// What a person cannot see at once may come later, so that the answer to a click does not wait for it.

const waiting = new Map(); // what makes the rest of each list

/** Appends `make()`'s elements to `list` when what is there now has been painted, if it is still part of the page. */
export function fillLater(list, make) {
  list.ariaBusy = "true";
  waiting.set(list, make);
  requestAnimationFrame(() => setTimeout(() => fill(list)));
}

/** Fills all lists that wait: where the page is to be scrolled to what they will have. */
export function fillNow() {
  for (const list of [...waiting.keys()]) fill(list);
}

function fill(list) {
  const make = waiting.get(list);
  waiting.delete(list);
  if (!make || !list.isConnected) return;
  list.append(...make());
  list.ariaBusy = null;
}
