// Draws the plots of a report in the page's colours.
const plots = JSON.parse(document.getElementById('plots').textContent);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
const touch = matchMedia('(pointer: coarse)').matches;  // there a drag scrolls the page
const BUTTONS = ['toImage', 'zoom2d', 'pan2d', 'zoomIn2d', 'zoomOut2d', 'resetScale2d'];  // the others lead to a server

function draw(element) {
  const {traces, layout} = plots[element.dataset.plot];
  if (traces[0].type === 'heatmap') traces[0].colorscale = [[0, color('--card')], [1, color('--accent')]];
  const axis = {gridcolor: color('--line'), zerolinecolor: color('--line'), automargin: true};
  Plotly.newPlot(element, traces, {
    height: 280 + 20 * traces.length, margin: {l: 8, r: 8, t: 28, b: 8}, dragmode: touch ? false : 'zoom', showlegend: !traces[0].type,
    font: {color: color('--ink'), family: 'system-ui, sans-serif'}, legend: {orientation: 'h', yref: 'container', y: 0, yanchor: 'bottom'},
    paper_bgcolor: 'transparent', plot_bgcolor: 'transparent',
    ...layout, xaxis: {...axis, ...layout.xaxis}, yaxis: {...axis, ...layout.yaxis},
  }, {responsive: true, displaylogo: false, modeBarButtons: [BUTTONS]});
}

for (const element of document.querySelectorAll('.plot')) {
  const details = element.closest('details');  // a closed one has no width yet
  if (details) details.addEventListener('toggle', () => draw(element), {once: true});
  else draw(element);
}
