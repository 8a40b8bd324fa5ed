// Tables as text for spreadsheets and programs, copied or downloaded.

const FORMULA = /^[=+\-@\t\r]/; // what a spreadsheet would take for a formula
const DIGITS = 9; // enough to tell every float32 from its neighbours

/** Rows of texts and numbers as lines; texts are quoted where they must be and never read as a formula. */
export function delimited(rows, separator) {
  return rows.map((row) => row.map((cell) => (typeof cell === "number" ? plain(cell) : quoted(cell, separator)))
    .join(separator)).join("\r\n") + "\r\n";
}

function plain(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(DIGITS))) : "";
}

function quoted(text, separator) {
  const safe = (FORMULA.test(text) ? `'${text}` : text).replaceAll("\0", "␀");
  return safe.includes(separator) || /["\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
