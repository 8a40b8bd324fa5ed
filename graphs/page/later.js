// What a person cannot see at once may come later, so that the answer to a click does not wait for it.

/** Appends `make()`'s elements to `list` when what is there now has been painted, if it is still part of the page. */
export function fillLater(list, make) {
  list.ariaBusy = "true";
  requestAnimationFrame(() => setTimeout(() => {
    if (!list.isConnected) return;
    list.append(...make());
    list.ariaBusy = null;
  }));
}
