// How often predictions of a given confidence are right; on the diagonal both are equal.
import { percent } from "../parts/format";
import type { Reliability as Figures, Report } from "../parts/reports";

const SIDE = 100; // of the drawing, in its own units
const RADIUS = 3; // of a bin that holds every image

const LINES = [
  ["tuned", "Tuned"],
  ["calibrated", "Calibrated"],
  ["zero_shot", "Zero-shot"],
] as const;

export function Reliability({ of }: { of: NonNullable<Report["calibration"]> }) {
  const lines = LINES.flatMap(([key, label]) => {
    const figures = of[key];
    return figures === null || figures === undefined ? [] : [{ key, label, figures }];
  });
  const errors = lines.map(({ label, figures }) => `${label}: ${percent(figures.ece)}`).join(", ");
  return (
    <figure class="reliability">
      <svg viewBox="-14 -4 120 120" role="img" aria-label={`Calibration error. ${errors}`}>
        <rect class="frame" x="0" y="0" width={SIDE} height={SIDE} />
        <line class="ideal" x1="0" y1={SIDE} x2={SIDE} y2="0" />
        {lines.map(({ key, figures }) => (
          <Line key={key} kind={key} figures={figures} />
        ))}
        {[0, 0.5, 1].map((share) => (
          <g key={share}>
            <text x={share * SIDE} y={SIDE + 6} text-anchor="middle">
              {100 * share}
            </text>
            <text x="-2" y={(1 - share) * SIDE + 1.5} text-anchor="end">
              {100 * share}
            </text>
          </g>
        ))}
        <text x={SIDE / 2} y={SIDE + 13} text-anchor="middle">
          confidence, %
        </text>
        <text x="-10" y={SIDE / 2} text-anchor="middle" transform={`rotate(-90 -10 ${SIDE / 2})`}>
          right, %
        </text>
      </svg>
      <figcaption>
        <small>Expected calibration error</small>
        <ul class="legend">
          {lines.map(({ key, label, figures }) => (
            <li key={key} class={key}>
              {label} <span>{percent(figures.ece)}</span>
            </li>
          ))}
        </ul>
      </figcaption>
    </figure>
  );
}

function Line({ kind, figures }: { kind: string; figures: Figures }) {
  const total = figures.bins.reduce((sum, bin) => sum + bin.images, 0);
  const points = figures.bins.flatMap(({ images, confidence, accuracy }) => {
    if (confidence === null || accuracy === null) return [];
    const radius = 0.8 + RADIUS * Math.sqrt(images / total);
    return [{ x: confidence * SIDE, y: (1 - accuracy) * SIDE, radius }];
  });
  return (
    <g class={kind}>
      <polyline points={points.map(({ x, y }) => `${x},${y}`).join(" ")} />
      {points.map(({ x, y, radius }) => (
        <circle key={x} cx={x} cy={y} r={radius} />
      ))}
    </g>
  );
}
