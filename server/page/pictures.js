// Numbers as pictures.

// Okabe and Ito's colours, which colour-blind people tell apart.
export const COLOURS = [
  [0, 114, 178],
  [230, 159, 0],
  [0, 158, 115],
  [204, 121, 167],
  [86, 180, 233],
  [213, 94, 0],
  [240, 228, 66],
  [128, 128, 128],
];
const FOR = [255, 150, 20];
const AGAINST = [70, 160, 255];

const mix = (from, to, share) => from.map((level, i) => level + (to[i] - level) * share);

function paint(canvas, height, width, colour) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at += 4) image.data.set([...colour(y, x), 255], at);
  }
  context.putImageData(image, 0, 0);
}

/** Rows of numbers from 0 to 255 in gray. */
export function paintGray(canvas, rows) {
  paint(canvas, rows.length, rows[0].length, (y, x) => Array(3).fill(rows[y][x]));
}

/** The same, dimmed, under what each place spoke for the answer (orange) and against it (blue). */
export function paintAttributions(canvas, rows, attributions) {
  const most = Math.max(...attributions.flat().map(Math.abs)) || 1;
  paint(canvas, rows.length, rows[0].length, (y, x) => {
    const share = attributions[y][x] / most;
    const gray = Array(3).fill(rows[y][x] * 0.45);
    return mix(gray, share > 0 ? FOR : AGAINST, Math.sqrt(Math.abs(share)));
  });
}

/** In words, the ninth of the picture that spoke most for the answer. */
export function strongestPlace(attributions) {
  const sums = Array(9).fill(0);
  const third = (i, length) => Math.floor((3 * i) / length);
  attributions.forEach((row, y) =>
    row.forEach((value, x) => {
      sums[3 * third(y, attributions.length) + third(x, row.length)] += Math.max(value, 0);
    }),
  );
  const place = sums.indexOf(Math.max(...sums));
  if (place === 4) return "centre";
  const vertical = ["upper", "middle", "lower"][Math.floor(place / 3)];
  return `${vertical} ${["left", "centre", "right"][place % 3]}`;
}

/**
 * What is answered over a plane: the colours of the labels, mixed by their probabilities, with a
 * line where the answer changes.
 *
 * @param probabilities of a grid of `side` by `side` points in rows from the top, by label
 */
export function paintSurface(canvas, probabilities, side) {
  const size = 256;
  const labels = probabilities[0].length;
  const answers = new Uint8Array(size * size);
  // Bilinear between the points of the grid, of which the outermost lie on the border.
  const at = (y, x, label) => {
    const [v, u] = [y, x].map((i) => (i / (size - 1)) * (side - 1));
    const [top, left] = [v, u].map((i) => Math.min(Math.floor(i), side - 2));
    const [dy, dx] = [v - top, u - left];
    const p = (row, column) => probabilities[row * side + column][label];
    return (
      (1 - dy) * ((1 - dx) * p(top, left) + dx * p(top, left + 1)) +
      dy * ((1 - dx) * p(top + 1, left) + dx * p(top + 1, left + 1))
    );
  };
  paint(canvas, size, size, (y, x) => {
    const colour = [0, 0, 0];
    let best = 0;
    for (let label = 0; label < labels; label++) {
      const share = at(y, x, label);
      if (share > best) [best, answers[y * size + x]] = [share, label];
      COLOURS[label % COLOURS.length].forEach((level, i) => (colour[i] += share * level));
    }
    return mix(colour, [255, 255, 255], 0.35);
  });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  for (let y = 1; y < size; y++) {
    for (let x = 1; x < size; x++) {
      const label = answers[y * size + x];
      if (label !== answers[y * size + x - 1] || label !== answers[(y - 1) * size + x]) {
        context.fillRect(x - 1, y - 1, 2, 2);
      }
    }
  }
}
