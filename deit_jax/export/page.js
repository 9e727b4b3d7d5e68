// A model in a page: image → the evaluation view of deit_jax → ONNX Runtime → classes and attention.
const $ = (id) => document.getElementById(id);
const about = JSON.parse($('about').textContent);

// PIL's filters: [support in pixels, weight]
const sinc = (x) => (x ? Math.sin(Math.PI * x) / (Math.PI * x) : 1);
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
  bicubic: [2, (x) => {
    const d = Math.abs(x);
    return d < 1 ? (1.5 * d - 2.5) * d * d + 1 : d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
  }],
  lanczos: [3, (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

/** One axis of PIL's antialiased resizing, of RGB bytes: `lines` lines of `size` pixels become `wanted` pixels long. */
function resample(pixels, size, wanted, lines, horizontal) {
  if (size === wanted) return pixels;
  const scale = size / wanted, stretch = Math.max(scale, 1);
  const [support, filter] = FILTERS[about.interpolation] ?? [0, () => 1];
  const out = new Uint8ClampedArray(lines * wanted * 3);
  const step = horizontal ? 3 : lines * 3, line = horizontal ? size * 3 : 3, outLine = horizontal ? wanted * 3 : 3;
  for (let x = 0; x < wanted; x++) {
    const centre = (x + 0.5) * scale;
    let low = Math.max(0, Math.trunc(centre - support * stretch + 0.5));
    let high = Math.min(size, Math.trunc(centre + support * stretch + 0.5));
    if (!support) [low, high] = [Math.floor(centre), Math.floor(centre) + 1];
    const weights = Array.from({length: high - low}, (_, i) => filter((low + i + 0.5 - centre) / stretch));
    const sum = weights.reduce((a, b) => a + b);
    for (let l = 0; l < lines; l++) {
      for (let c = 0; c < 3; c++) {
        let value = 0;
        for (let i = 0, at = l * line + low * step + c; i < weights.length; i++, at += step) value += weights[i] * pixels[at];
        out[l * outLine + x * step + c] = value / sum;
      }
    }
  }
  return out;
}

/** The square view that the model sees, as deit_jax.eval_image makes it: RGB bytes. */
function evaluationView(image) {
  const {data, width, height} = image;
  let pixels = new Uint8ClampedArray(width * height * 3);
  for (let i = 0; i < width * height; i++) for (let c = 0; c < 3; c++) pixels[3 * i + c] = data[4 * i + c];
  const size = about.size, short = Math.max(size, Math.trunc(size / about.crop));
  const ratio = about.fit === 'squash' ? 1 : width / height;
  const newWidth = ratio > 1 ? Math.trunc((short * width) / height) : short;
  const newHeight = ratio < 1 ? Math.trunc((short * height) / width) : short;
  const even = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));
  const [left, top] = [newWidth, newHeight].map((n) => (about.fit === 'short' ? even : Math.floor)((n - size) / 2));
  pixels = resample(pixels, width, newWidth, height, true);
  pixels = resample(pixels, height, newHeight, newWidth, false);
  const view = new Uint8Array(size * size * 3);
  for (let y = 0; y < size; y++) {
    const start = ((top + y) * newWidth + left) * 3;
    view.set(pixels.subarray(start, start + size * 3), y * size * 3);
  }
  return view;
}

/** The pixels of an image file, turned as its EXIF orientation says. */
async function decode(blob) {
  const bitmap = await createImageBitmap(blob, {colorSpaceConversion: 'none'});
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d');
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

/** What a script element holds: base64 of gzip. */
async function unpack(id) {
  const packed = await fetch('data:application/octet-stream;base64,' + $(id).textContent.trim());
  $(id).remove();
  return new Response(packed.body.pipeThrough(new DecompressionStream('gzip'))).arrayBuffer();
}

function say(text, error = false) {
  $('status').textContent = text;
  $('status').classList.toggle('error', error);
}

const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const percent = (p) => `${(100 * p).toFixed(1)} %`;

/** The likeliest classes of each head, side by side. */
function showClasses(result) {
  const first = [];
  $('heads').replaceChildren(...Object.entries(about.outputs).map(([output, title]) => {
    const p = result[output].data;
    const best = [...p.keys()].sort((a, b) => p[b] - p[a]).slice(0, 5);
    first.push([title, about.classes[best[0]], p[best[0]]]);
    const rows = best.map((i) => {
      const row = element('li', {}, element('span', {textContent: about.classes[i]}),
        element('span', {className: 'percent', textContent: percent(p[i])}));
      row.style.setProperty('--share', `${100 * p[i]}%`);
      row.dataset.probability = p[i];
      return row;
    });
    return element('div', {}, element('h3', {textContent: title}), element('ol', {}, ...rows));
  }));
  const [cls, dist] = first, joint = first.at(-1);
  $('verdict').textContent = dist && cls[1] !== dist[1]
    ? `The heads disagree: the class head sees ${cls[1]}, the distillation head ${dist[1]}; together ${joint[1]}.`
    : `${dist ? 'Both heads agree: ' : ''}${joint[1]}, ${percent(joint[2])}.`;
  $('classes').hidden = false;
}

let current = null;  // {view: ImageData, attention, rollout}

/** One token's map over the patches, of the layer and head that the controls name. */
function tokenMap(token, kind, layer, head) {
  const {heads, prefix} = about, cells = about.grid[0] * about.grid[1], row = prefix + cells;
  const at = (h) => (((layer * heads + h) * prefix + token) * row) + prefix;
  if (kind === 'rollout') return current.rollout.subarray((layer * prefix + token) * row + prefix).subarray(0, cells);
  if (head >= 0) return current.attention.subarray(at(head), at(head) + cells);
  const mean = new Float32Array(cells);
  for (let h = 0; h < heads; h++) for (let i = 0; i < cells; i++) mean[i] += current.attention[at(h) + i] / heads;
  return mean;
}

function drawMaps() {
  const kind = document.querySelector('[name=kind]:checked').value, layer = $('layer').valueAsNumber;
  const rollout = kind === 'rollout', head = rollout ? -1 : Number($('head').value);
  $('head').disabled = rollout;
  $('layer-out').value = `${rollout ? 'up to ' : ''}${layer} of ${about.depth}`;
  $('strength-out').value = `${$('strength').value} %`;
  if (!current) return;
  const [rows, columns] = about.grid;
  for (const [token, canvas] of [...document.querySelectorAll('#maps canvas')].entries()) {
    const map = tokenMap(token, kind, layer - 1, head), most = Math.max(...map), least = Math.min(...map);
    const small = new OffscreenCanvas(columns, rows), pixels = new ImageData(columns, rows);
    map.forEach((value, i) => {
      const t = (value - least) / (most - least || 1);  // from dark violet, half transparent, to orange
      pixels.data.set([60 + 195 * t, 20 + 85 * t, 90 - 90 * t, 120 + 135 * t], 4 * i);
    });
    small.getContext('2d').putImageData(pixels, 0, 0);
    const context = canvas.getContext('2d');
    context.imageSmoothingQuality = 'high';
    context.globalAlpha = 1;
    context.drawImage(current.image, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = $('strength').valueAsNumber / 100;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    const peak = map.indexOf(most), y = Math.floor(peak / columns) / rows, x = (peak % columns) / columns;
    const place = [['top', 'middle', 'bottom'][Math.floor(3 * y)], ['left', 'centre', 'right'][Math.floor(3 * x)]].join(' ');
    const what = rollout ? `rollout to layer ${layer}` : `layer ${layer}, ${head < 0 ? 'mean of heads' : `head ${head + 1}`}`;
    canvas.setAttribute('aria-label', `${about.tokens[token]}, ${what}: strongest at the ${place} of the photo`);
  }
}

let session, ort;

/** Classify an image file, and show what there is to see. Keeps what is shown where it is none. */
async function classify(blob, name) {
  say(`Classifying ${name} …`);
  document.querySelectorAll('.examples button').forEach((b) => b.setAttribute('aria-pressed', b.title === name));
  let image;
  try {
    image = await decode(blob);
  } catch {
    return say(`${name} is not an image that this browser can read: choose a JPEG or PNG file.`, true);
  }
  await new Promise((next) => setTimeout(next));  // the browser shows the line above first
  const {size} = about, view = evaluationView(image), start = performance.now();
  const result = await session.run({images: new ort.Tensor('uint8', view, [1, size, size, 3])});
  const time = Math.round(performance.now() - start);
  const shown = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) shown.data.set([...view.subarray(3 * i, 3 * i + 3), 255], 4 * i);
  const canvas = $('view');
  canvas.width = canvas.height = size;
  canvas.getContext('2d').putImageData(shown, 0, 0);
  canvas.hidden = false;
  showClasses(result);
  if (about.depth) {
    current = {image: canvas, attention: result.attention.data, rollout: result.rollout.data};
    $('attention').hidden = false;
    drawMaps();
  }
  say(`${name}: classified in ${time} ms.`);
}

function makeControls() {
  const side = Math.max(448, about.size);
  $('maps').replaceChildren(...(about.tokens ?? []).map((title) => {
    const canvas = element('canvas', {width: side, height: side});
    canvas.setAttribute('role', 'img');
    return element('figure', {}, canvas, element('figcaption', {textContent: title}));
  }));
  if (about.depth) {
    Object.assign($('layer'), {max: about.depth, value: about.depth});
    for (let h = 0; h < about.heads; h++) $('head').append(new Option(`head ${h + 1}`, h));
    document.querySelector('.controls').addEventListener('input', drawMaps);
    drawMaps();
  }
  $('examples').append(...about.examples.map(([name, url]) => {
    const button = element('button', {type: 'button', title: name}, element('img', {src: url, alt: name}));
    button.onclick = async () => session && classify(await (await fetch(url)).blob(), name);
    return button;
  }));
  $('file').onchange = (event) => event.target.files[0] && classify(event.target.files[0], event.target.files[0].name);
  for (const kind of ['dragover', 'dragleave', 'drop']) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      $('drop').classList.toggle('over', kind === 'dragover');
      const file = event.dataTransfer?.files[0];
      if (kind === 'drop' && session && file) classify(file, file.name);
    });
  }
}

try {
  makeControls();
  const runtime = new Blob([await unpack('runtime')], {type: 'text/javascript'});
  ort = await import(URL.createObjectURL(runtime));
  Object.assign(ort.env.wasm, {wasmBinary: await unpack('wasm'), numThreads: 1});
  session = await ort.InferenceSession.create(new Uint8Array(await unpack('model')), {executionProviders: ['wasm']});
  $('file').disabled = false;
  say('Ready.');
} catch (error) {
  say(`The model cannot be started in this browser: ${error.message ?? error}`, true);
}
