// One chart of values over steps, drawn by uPlot on a canvas; screen readers get its numbers in words.
import { useEffect, useMemo, useRef } from "preact/hooks";
import uPlot from "uplot";
import { appearance, colour } from "../parts/theme";

export type Values = readonly (number | null)[];

export interface Line {
  label: string;
  /** A custom property of the style sheet. */
  colour: string;
  values: Values;
  /** Draw points, for values that few steps have. */
  sparse?: boolean;
}

/** A stretch of the x axis with a name, such as a stage. */
export interface Band {
  label: string;
  /** Shown where the label does not fit. */
  short: string;
  from: number;
  to: number;
  colour: string;
}

/** A place on the x axis with a name. */
export interface Mark {
  label: string;
  at: number;
}

interface Props {
  title: string;
  /** Ascending. */
  x: readonly number[];
  lines: readonly Line[];
  bands?: readonly Band[];
  mark?: Mark | undefined;
  xLabel?: string;
  format: (value: number) => string;
  /** Only for values above 0. */
  logarithmic?: boolean;
  height?: number;
}

const cursors = uPlot.sync("steps"); // all charts of a page show the same step

export function LineChart(props: Props) {
  const { title, x, lines, bands, mark, logarithmic = false, height = 220 } = props;
  const place = useRef<HTMLDivElement>(null);
  const chart = useRef<uPlot>();
  const shown = useRef(props);
  shown.current = props;
  const shape = [
    appearance.value,
    title,
    props.xLabel,
    logarithmic,
    ...lines.map((line) => line.label),
  ].join("\n");

  useEffect(() => {
    const element = place.current;
    if (element === null) return;
    const made = new uPlot(options(element.clientWidth, shown), data(x, lines), element);
    chart.current = made;
    const observer = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height }));
    observer.observe(element);
    return () => (observer.disconnect(), made.destroy());
  }, [shape]);
  useEffect(() => chart.current?.setData(data(x, lines)), [x, lines, bands, mark]);

  const summary = useMemo(() => summarise(props), [x, lines, mark]);
  return (
    <figure class="chart">
      <figcaption>{title}</figcaption>
      <div ref={place} role="img" aria-label={summary} />
    </figure>
  );
}

function data(x: readonly number[], lines: readonly Line[]): uPlot.AlignedData {
  return [x, ...lines.map((line) => line.values)] as unknown as uPlot.AlignedData;
}

function options(width: number, shown: { current: Props }): uPlot.Options {
  const { lines, xLabel = "step", format, logarithmic = false, height = 220 } = shown.current;
  const axis = {
    stroke: colour("--faint"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1 },
    font: "11px system-ui, sans-serif",
  };
  return {
    width,
    height,
    cursor: { sync: { key: cursors.key }, drag: { x: true, y: false } },
    scales: { x: { time: false }, y: logarithmic ? { distr: 3 } : {} },
    axes: [
      { ...axis, label: xLabel, labelSize: 16, labelFont: axis.font, size: 32 },
      {
        ...axis,
        size: 58,
        values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : format(tick))),
      },
    ],
    series: [
      { label: xLabel, value: (_, v) => (v === null ? "–" : String(v)) },
      ...lines.map((line) => ({
        label: line.label,
        stroke: colour(line.colour),
        width: 1.75,
        spanGaps: true,
        points: { show: line.sparse === true && line.values.length < 400, size: 4 },
        value: (_: uPlot, v: number | null) => (v === null ? "–" : format(v)),
      })),
    ],
    hooks: {
      drawClear: [(made) => drawBands(made, shown.current.bands ?? [])],
      draw: [(made) => drawMark(made, shown.current.mark)],
    },
  };
}

/** Draw within the axes, with the font of their labels. */
function inPlot(chart: uPlot, draw: (ctx: CanvasRenderingContext2D) => void): void {
  const { ctx, bbox } = chart;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  draw(ctx);
  ctx.restore();
}

function drawBands(chart: uPlot, bands: readonly Band[]): void {
  inPlot(chart, (ctx) => paintBands(chart, ctx, bands));
}

function paintBands(chart: uPlot, ctx: CanvasRenderingContext2D, bands: readonly Band[]): void {
  const { bbox } = chart;
  ctx.textBaseline = "top";
  ctx.textAlign = "left";
  ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
  ctx.strokeStyle = colour("--faint");
  for (const [index, band] of bands.entries()) {
    const left = chart.valToPos(band.from, "x", true);
    const right = chart.valToPos(band.to, "x", true);
    ctx.fillStyle = colour(band.colour);
    ctx.fillRect(left, bbox.top, right - left, bbox.height);
    if (index > 0) drawLine(ctx, left, bbox.top, bbox.height);
    ctx.fillStyle = colour("--faint");
    const start = Math.max(left, bbox.left) + 6;
    const fits = (label: string) => right - start > ctx.measureText(label).width;
    const label = [band.label, band.short].find(fits);
    if (label !== undefined) ctx.fillText(label, start, bbox.top + 6);
  }
}

function drawMark(chart: uPlot, mark: Mark | undefined): void {
  if (mark === undefined) return;
  inPlot(chart, (ctx) => {
    const { bbox } = chart;
    const x = chart.valToPos(mark.at, "x", true);
    const isLeft = x < bbox.left + bbox.width / 2; // the label goes where there is more room
    ctx.strokeStyle = ctx.fillStyle = colour("--good");
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.textBaseline = "bottom";
    ctx.textAlign = isLeft ? "left" : "right";
    drawLine(ctx, x, bbox.top, bbox.height);
    ctx.fillText(mark.label, isLeft ? x + 6 : x - 6, bbox.top + bbox.height - 6);
  });
}

function drawLine(ctx: CanvasRenderingContext2D, x: number, top: number, height: number): void {
  ctx.beginPath();
  ctx.moveTo(x, top);
  ctx.lineTo(x, top + height);
  ctx.stroke();
}

/** The chart in words, for readers who do not see it. */
function summarise({ title, x, lines, mark, xLabel = "step", format }: Props): string {
  const sentences = lines.map((line) => {
    const known = line.values.filter((value) => value !== null);
    const [first, last] = [known[0], known.at(-1)];
    if (first === undefined || last === undefined) return `${line.label}: nothing measured yet`;
    const [low, high] = [
      known.reduce((a, b) => Math.min(a, b)),
      known.reduce((a, b) => Math.max(a, b)),
    ];
    return `${line.label}: from ${format(first)} to ${format(last)}, lowest ${format(low)}, highest ${format(high)}`;
  });
  if (mark !== undefined) sentences.push(`${mark.label}: ${xLabel} ${mark.at}`);
  return `${title}, ${xLabel} ${x[0] ?? 0} to ${x.at(-1) ?? 0}. ${sentences.join(". ")}`;
}
