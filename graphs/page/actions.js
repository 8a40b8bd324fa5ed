// What a person can change: pins, supernodes, labels. Pure functions from a state to the fields that change.
// A supernode is {key, name, nodes}; its nodes are pinned, and a node is in at most one.

const LONGEST_NAME = 500; // characters of a label or a supernode's name

export function setPinned(state, nodes, pinned) {
  const now = new Set(state.pins);
  if (nodes.every((node) => now.has(node) === pinned)) return {};
  if (pinned) return { pins: [...new Set([...state.pins, ...nodes])] };
  const gone = new Set(nodes);
  return { pins: state.pins.filter((node) => !gone.has(node)), groups: without(state.groups, gone) };
}

/** A new supernode of `nodes`, which leave the ones they were in. */
export function makeGroup(state, nodes, name) {
  const unique = [...new Set(nodes)];
  if (unique.length === 0) return {};
  const taken = new Set(state.groups.map((group) => group.key));
  let number = state.groups.length;
  while (taken.has(`g${number}`)) number++;
  const group = { key: `g${number}`, name: clean(name) || `group ${number + 1}`, nodes: unique };
  return { pins: [...new Set([...state.pins, ...unique])], groups: [...without(state.groups, new Set(unique)), group] };
}

export function renameGroup(state, key, name) {
  const text = clean(name);
  if (text === "" || !state.groups.some((group) => group.key === key && group.name !== text)) return {};
  return { groups: state.groups.map((group) => (group.key === key ? { ...group, name: text } : group)) };
}

/** The supernode is gone; its nodes stay pinned. */
export function splitGroup(state, key) {
  if (!state.groups.some((group) => group.key === key)) return {};
  return { groups: state.groups.filter((group) => group.key !== key) };
}

/** Put a node into the supernode `key`, or out of any (null). A supernode left empty is gone. */
export function moveToGroup(state, node, key) {
  const now = groupOf(state, node)?.key ?? null;
  if (key === null && now === null) return setPinned(state, [node], true);
  if (key === now || (key !== null && !state.groups.some((group) => group.key === key))) return {};
  const groups = without(state.groups, new Set([node]), key);
  return { pins: [...new Set([...state.pins, node])],
    groups: groups.map((group) => (group.key === key ? { ...group, nodes: [...group.nodes, node] } : group)) };
}

/** The label of all nodes of one key (graph.labelKey); "" or the original text takes the edit back. */
export function setLabel(state, key, text, original) {
  const wanted = clean(text) === clean(original) ? "" : clean(text);
  if (wanted === (state.labels[key] ?? "")) return {};
  const labels = { ...state.labels };
  if (wanted === "") delete labels[key];
  else labels[key] = wanted;
  return { labels };
}

export function groupOf(state, node) {
  return state.groups.find((group) => group.nodes.includes(node)) ?? null;
}

function without(groups, gone, even = null) {
  if (!groups.some((group) => group.nodes.some((node) => gone.has(node)))) return groups;
  return groups.map((group) => (group.nodes.some((node) => gone.has(node))
    ? { ...group, nodes: group.nodes.filter((node) => !gone.has(node)) } : group))
    .filter((group) => group.nodes.length > 0 || group.key === even);
}

/** A name or label as it is kept: without NUL, halves of surrogate pairs and spaces around it, and not too long. */
export function clean(text) {
  const whole = text.slice(0, 4 * LONGEST_NAME).replace(/\0/g, "").trim().slice(0, LONGEST_NAME);
  return whole.replace(/\p{Surrogate}$/u, "").replace(/\p{Surrogate}/gu, "\ufffd").trim();
}
