const plots = JSON.parse(document.getElementById("plots").textContent);

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = {gridcolor: colour("--line"), linecolor: colour("--rule"), zerolinecolor: colour("--rule"),
    tickcolor: colour("--rule"), automargin: true};
  const font = {family: "system-ui, sans-serif", size: 12.5, color: colour("--ink")};
  return {...layout, font, xaxis: {...axis, ...layout.xaxis}, yaxis: {...axis, ...layout.yaxis}};
}

function draw() {
  for (const [name, {data, layout}] of Object.entries(plots)) {
    Plotly.react(name, structuredClone(data), themed(layout),
      {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]});
  }
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
