// The picture and the points of one frame, both with their instances. `element`, `props` and `watch` are Gradio's.
// props.cloud: what does not change while a frame is shown; props.paint: the instances that pass the filter.

const whole = element.querySelector(".whole"), get = (name) => whole.querySelector("." + name);
const picture = get("picture"), canvas = get("cloud"), tip = get("tip"), legend = get("legend"), scale = get("scale");
const gl = canvas.getContext("webgl", { antialias: true });
const FIELD = Math.tan((25 * Math.PI) / 180); // half of the view's height, at a distance of one
let frame = null, revealed = null, segments = [], ids = null, hovered = 0, view = null, points = null, lines = null, serial = 0;

// --- data ---------------------------------------------------------------------------------------------------------

async function pixels(url, width, height) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const surface = new OffscreenCanvas(width || image.width, height || image.height);
  const context = surface.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, surface.width, surface.height);
  return context.getImageData(0, 0, surface.width, surface.height);
}

// Numbers of 16 bits that are kept in red (low) and green (high).
function numbers(image) {
  const values = new Uint16Array(image.width * image.height);
  for (let i = 0; i < values.length; i++) values[i] = image.data[4 * i] + 256 * image.data[4 * i + 1];
  return values;
}

async function update() {
  const { cloud, paint } = props;
  if (!cloud || !paint) return;
  const now = ++serial;
  if (frame === null || frame.key !== cloud.key) {
    const depth = await pixels(cloud.depth);
    const [photo, colors] = [await pixels(cloud.image), await pixels(cloud.image, depth.width, depth.height)];
    if (now !== serial) return;
    frame = { ...cloud, photo, width: depth.width, height: depth.height };
    unproject(numbers(depth), colors.data);
    home();
  }
  const map = numbers(await pixels(paint.ids));
  if (now !== serial) return;
  [ids, segments, hovered] = [map, paint.segments, 0];
  const isFirst = frame !== revealed;
  whole.classList.add("filled");
  listSegments();
  color();
  if (isFirst) reveal();
}

// On a small screen the form is above.
function reveal() {
  const { top, bottom } = whole.getBoundingClientRect();
  revealed = frame;
  if (top < 0 || bottom > innerHeight) whole.scrollIntoView({ behavior: "smooth" });
}

// Pixels with depth as points: x right, y up, z backward from the camera.
function unproject(depth, colors) {
  const [fx, fy, cx, cy] = frame.camera;
  const chosen = [];
  for (let i = 0; i < depth.length; i++) if (depth[i]) chosen.push(i);
  points = { pixel: Uint32Array.from(chosen), place: new Float32Array(3 * chosen.length), own: new Uint8Array(3 * chosen.length) };
  chosen.forEach((pixel, k) => {
    const z = depth[pixel] * frame.unit, row = Math.floor(pixel / frame.width);
    points.place.set([((pixel % frame.width) - cx) / fx * z, (cy - row) / fy * z, -z], 3 * k);
    points.own.set(colors.subarray(4 * pixel, 4 * pixel + 3), 3 * k);
  });
  if (gl) fill("points", points.place);
}

// --- the legend and the picture -----------------------------------------------------------------------------------

const css = (color) => `rgb(${color.join(",")})`;

function listSegments() {
  legend.replaceChildren(...segments.map((segment, index) => {
    const item = document.createElement("span");
    item.className = "legend-item";
    item.style.borderColor = css(segment.color);
    item.textContent = segment.text;
    item.onpointerenter = () => hover(index + 1);
    item.onpointerleave = () => hover(0);
    return item;
  }));
}

function drawPicture() {
  const { photo, width, height } = frame;
  [picture.width, picture.height] = [photo.width, photo.height];
  const shown = new ImageData(new Uint8ClampedArray(photo.data), photo.width, photo.height);
  const columns = Uint32Array.from({ length: photo.width }, (_, x) => Math.floor(x * width / photo.width));
  for (let y = 0; y < photo.height; y++) {
    const row = Math.floor(y * height / photo.height) * width;
    const below = Math.floor(Math.min(y + 2, photo.height - 1) * height / photo.height) * width;
    for (let x = 0; x < photo.width; x++) {
      const id = ids[row + columns[x]];
      const right = ids[row + columns[Math.min(x + 2, photo.width - 1)]], down = ids[below + columns[x]];
      const edge = id !== right || id !== down;
      const of = edge ? id || right || down : id;
      if (!of) continue;
      const tint = edge ? 1 : hovered === 0 ? 0.5 : of === hovered ? 0.75 : 0.15, at = 4 * (y * photo.width + x);
      for (let c = 0; c < 3; c++) shown.data[at + c] += tint * (segments[of - 1].color[c] - shown.data[at + c]);
    }
  }
  picture.getContext("2d").putImageData(shown, 0, 0);
}

function hover(id, event) {
  if (event && id) {
    const box = whole.getBoundingClientRect();
    tip.textContent = `${segments[id - 1].text}, ${segments[id - 1].size}`;
    tip.style.display = "block";
    tip.style.left = Math.min(event.clientX - box.left + 12, box.width - tip.offsetWidth - 4) + "px";
    tip.style.top = event.clientY - box.top + 14 + "px";
  } else tip.style.display = "none";
  if (id === hovered) return;
  hovered = id;
  Array.from(legend.children).forEach((item, index) => item.classList.toggle("hovered", index + 1 === id));
  color();
}

// Pointers move more often than there is something to draw.
let pointed = null;

function soon(find, event) {
  if (pointed === null) requestAnimationFrame(() => {
    const [find, event] = pointed;
    pointed = null;
    find(event);
  });
  pointed = [find, event];
}

picture.addEventListener("pointermove", (event) => soon(pointAt, event));

function pointAt(event) {
  if (!ids) return;
  const box = picture.getBoundingClientRect();
  const x = Math.floor((event.clientX - box.left) / box.width * frame.width);
  const y = Math.floor((event.clientY - box.top) / box.height * frame.height);
  hover(x >= 0 && y >= 0 && x < frame.width && y < frame.height ? ids[y * frame.width + x] : 0, event);
}

for (const surface of [picture, canvas]) {
  surface.addEventListener("pointerleave", (event) => soon(() => hover(0), event));
}

// --- the points ---------------------------------------------------------------------------------------------------

const SHADERS = [`
  attribute vec3 place; attribute vec3 color; varying vec3 shade;
  uniform mat3 turn; uniform vec3 pivot, shift; uniform vec2 focal, range; uniform float size;
  void main() {
    vec3 p = turn * (place - pivot) + shift;
    float w = -p.z;
    gl_Position = vec4(focal * p.xy, (w * (range.y + range.x) - 2.0 * range.x * range.y) / (range.y - range.x), w);
    gl_PointSize = clamp(size * -place.z / max(w, 0.001), 1.0, 16.0);
    shade = color;
  }`, `
  precision mediump float; varying vec3 shade;
  void main() { gl_FragColor = vec4(shade, 1.0); }`];

let program = null;
const buffers = {};
if (gl) {
  program = gl.createProgram();
  SHADERS.forEach((source, index) => {
    const shader = gl.createShader(index ? gl.FRAGMENT_SHADER : gl.VERTEX_SHADER);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  });
  gl.linkProgram(program);
  gl.useProgram(program);
  gl.enable(gl.DEPTH_TEST);
  gl.clearColor(0.96, 0.97, 0.98, 1);
  for (const name of ["points", "colors", "ends", "endColors"]) buffers[name] = gl.createBuffer();
  new ResizeObserver(() => draw()).observe(canvas);
} else get("points").classList.add("without");

function fill(name, values) {
  gl.bindBuffer(gl.ARRAY_BUFFER, buffers[name]);
  gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
}

const EDGES = [0, 1, 1, 3, 3, 2, 2, 0, 4, 5, 5, 7, 7, 6, 6, 4, 0, 4, 1, 5, 2, 6, 3, 7];

function color() {
  drawPicture();
  if (!gl) return;
  const colors = Uint8Array.from(points.own);
  points.pixel.forEach((pixel, k) => {
    const id = ids[pixel];
    const part = !id ? 0 : hovered === 0 || hovered === id ? 0.8 : 0.25;
    if (part) for (let c = 0; c < 3; c++) colors[3 * k + c] += part * (segments[id - 1].color[c] - colors[3 * k + c]);
  });
  fill("colors", colors);
  const boxes = get("boxes").checked ? segments.filter((_, index) => !hovered || hovered === index + 1) : [];
  fill("ends", Float32Array.from(boxes.flatMap((segment) => EDGES.flatMap((corner) => segment.corners[corner]))));
  fill("endColors", Uint8Array.from(boxes.flatMap((segment) => EDGES.flatMap(() => segment.color))));
  lines = EDGES.length * boxes.length;
  draw();
}

// As the camera looks, from somewhat behind it; turned round the median of the points, which far ones do not move.
function home() {
  const median = (axis) => {
    const values = points.place.filter((_, index) => index % 3 === axis).sort();
    return values.length ? values[values.length >> 1] : 0;
  };
  const pivot = [median(0), median(1), median(2)];
  view = { yaw: 0, pitch: 0, distance: Math.max(1.15 * -pivot[2], 0.1), pivot, shift: [pivot[0], pivot[1]] };
}

function turned() {
  const [a, b, c, d] = [Math.cos(view.yaw), Math.sin(view.yaw), Math.cos(view.pitch), Math.sin(view.pitch)];
  return [[a, 0, b], [b * d, c, -a * d], [-b * c, d, a * c]];
}

function draw() {
  if (!gl || !view || lines === null) return;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.round(side * devicePixelRatio));
  if (!width || !height) return;
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  gl.viewport(0, 0, width, height);
  gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  const place = (name) => gl.getUniformLocation(program, name);
  const rows = turned();
  gl.uniformMatrix3fv(place("turn"), false, [0, 1, 2].flatMap((column) => rows.map((row) => row[column])));
  gl.uniform3fv(place("pivot"), view.pivot);
  gl.uniform3f(place("shift"), ...view.shift, -view.distance);
  gl.uniform2f(place("focal"), height / width / FIELD, 1 / FIELD);
  gl.uniform2f(place("range"), 0.01 * view.distance, 40 * view.distance + 40);
  gl.uniform1f(place("size"), 0.75 * height / FIELD / frame.camera[1]);
  for (const [kind, ends, colors, count] of [
    [gl.POINTS, "points", "colors", points.pixel.length],
    [gl.LINES, "ends", "endColors", lines],
  ]) {
    for (const [name, buffer, type] of [["place", ends, gl.FLOAT], ["color", colors, gl.UNSIGNED_BYTE]]) {
      const at = gl.getAttribLocation(program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, buffers[buffer]);
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, 3, type, type === gl.UNSIGNED_BYTE, 0, 0);
    }
    gl.drawArrays(kind, 0, count);
  }
  drawScale();
  canvas.dataset.view = JSON.stringify(view);
}

// A bar of a round length as it looks at the distance of the pivot.
function drawScale() {
  const pixelsPerMetre = canvas.clientHeight / (2 * FIELD * view.distance);
  const wanted = 110 / pixelsPerMetre, power = 10 ** Math.floor(Math.log10(wanted));
  const length = [5, 2, 1].find((step) => step * power <= wanted) * power;
  scale.style.width = length * pixelsPerMetre + "px";
  scale.textContent = length < 1 ? `${Math.round(100 * length)} cm` : `${length} m`;
}

// The instance of the nearest point within a few pixels of the pointer.
function pick(event) {
  const box = canvas.getBoundingClientRect(), [right, up, back] = turned(), reach = 6;
  const [x, y] = [event.clientX - box.left - box.width / 2, box.height / 2 - (event.clientY - box.top)];
  const focal = box.height / 2 / FIELD, { place } = points, [px, py, pz] = view.pivot;
  let best = -1, nearest = Infinity;
  for (let k = 0, at = 0; k < points.pixel.length; k++, at += 3) {
    const a = place[at] - px, b = place[at + 1] - py, c = place[at + 2] - pz;
    const w = view.distance - (back[0] * a + back[1] * b + back[2] * c);
    if (w <= 0 || w >= nearest) continue;
    const across = right[0] * a + right[1] * b + right[2] * c + view.shift[0];
    if (Math.abs(focal * across / w - x) > reach) continue;
    const above = up[0] * a + up[1] * b + up[2] * c + view.shift[1];
    if (Math.abs(focal * above / w - y) > reach) continue;
    best = k;
    nearest = w;
  }
  return best < 0 ? 0 : ids[points.pixel[best]];
}

// --- moving the view ----------------------------------------------------------------------------------------------

const fingers = new Map();

function zoom(factor) {
  view.distance = Math.min(Math.max(view.distance * factor, 0.05), 200);
}

function move(dx, dy) {
  const metres = (2 * FIELD * view.distance) / canvas.clientHeight;
  view.shift = [view.shift[0] + dx * metres, view.shift[1] - dy * metres];
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, event);
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
}
canvas.addEventListener("pointermove", (event) => {
  if (!view) return;
  const before = fingers.get(event.pointerId);
  if (!before) {
    soon((moved) => hover(pick(moved), moved), event);
    return;
  }
  const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
  if (fingers.size === 2) {
    const other = [...fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
    const gap = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    zoom(gap(before) / Math.max(gap(event), 1));
    move(dx / 2, dy / 2);
  } else if (event.shiftKey || event.buttons & 6) move(dx, dy);
  else {
    view.yaw += 0.006 * dx;
    view.pitch = Math.min(Math.max(view.pitch + 0.006 * dy, -1.5), 1.5);
  }
  fingers.set(event.pointerId, event);
  draw();
});
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  if (!view) return;
  zoom(Math.exp(0.001 * event.deltaY));
  draw();
}, { passive: false });
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
get("home").addEventListener("click", () => {
  if (!view) return;
  home();
  draw();
});
get("boxes").addEventListener("change", () => ids && color());

watch(["cloud", "paint"], update);
update();
