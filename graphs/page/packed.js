// Reads what packed.py wrote: gzip in base64, JSON first, then columns of numbers as typed arrays.

const TYPES = { Float32Array, Int32Array, Uint16Array, Uint8Array };

/** {values, columns: {name: typed array}}. */
export async function unpack(base64) {
  const text = atob(base64);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = await new Response(stream).arrayBuffer();
  const length = new DataView(bytes).getUint32(0, true);
  const { columns, ...values } = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  const read = ([type, start, count]) => new TYPES[type](bytes, 4 + length + start, count);
  return { values, columns: Object.fromEntries(Object.entries(columns).map(([name, where]) => [name, read(where)])) };
}
