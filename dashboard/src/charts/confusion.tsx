// Which classes are confused: a matrix, or for many classes the most frequent pairs.
import { useMemo } from "preact/hooks";
import { Table, Text } from "../parts/basics";
import { count, percent } from "../parts/format";
import { Named } from "../parts/named";
import type { Cell } from "../parts/reports";

const MOST_CLASSES = 30; // in a readable matrix
const PAIRS = 25;
const LISTED_PAIRS = 3;

interface Props {
  names: readonly string[];
  cells: readonly Cell[];
}

export function Confusion({ names, cells }: Props) {
  const pairs = useMemo(() => confused(cells), [cells]);
  const totals = useMemo(() => sumByTrue(names.length, cells), [names, cells]);
  if (names.length > MOST_CLASSES) return <Pairs names={names} pairs={pairs} totals={totals} />;
  return (
    <>
      <Matrix names={names} cells={cells} totals={totals} />
      <Summary names={names} pairs={pairs} />
    </>
  );
}

function confused(cells: readonly Cell[]): Cell[] {
  return cells
    .filter(([actual, predicted]) => actual !== predicted)
    .toSorted((a, b) => b[2] - a[2]);
}

function sumByTrue(classes: number, cells: readonly Cell[]): number[] {
  const totals = new Array<number>(classes).fill(0);
  for (const [actual, , images] of cells) totals[actual] = (totals[actual] ?? 0) + images;
  return totals;
}

function Matrix({ names, cells, totals }: Props & { totals: number[] }) {
  const found = new Map(cells.map(([actual, predicted, n]) => [`${actual} ${predicted}`, n]));
  return (
    <div class="table" role="region" aria-label="Confusion matrix" tabIndex={0}>
      <table class="matrix">
        <thead>
          <tr>
            <th class="corner">
              true <span aria-hidden="true">↓</span> · predicted <span aria-hidden="true">→</span>
            </th>
            {names.map((name, index) => (
              <th key={index} class="upright" scope="col">
                <Text>{name}</Text>
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {names.map((name, actual) => (
            <tr key={actual}>
              <th scope="row">
                <Text>{name}</Text>
              </th>
              {names.map((other, predicted) => (
                <Shade
                  key={predicted}
                  images={found.get(`${actual} ${predicted}`) ?? 0}
                  of={totals[actual] ?? 0}
                  kind={actual === predicted ? "right" : "wrong"}
                  title={`${name} as ${other}`}
                />
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

interface ShadeProps {
  images: number;
  of: number;
  kind: "right" | "wrong";
  title: string;
}

function Shade({ images, of, kind, title }: ShadeProps) {
  const share = of === 0 ? 0 : images / of;
  return (
    <td class={kind} title={`${title}: ${percent(share)}`} style={{ "--share": share.toFixed(3) }}>
      {images > 0 ? count(images) : ""}
    </td>
  );
}

function Summary({ names, pairs }: { names: readonly string[]; pairs: Cell[] }) {
  if (pairs.length === 0) return <p class="empty">Every image was classified correctly.</p>;
  return (
    <p class="tags">
      <small>Most often:</small>
      {pairs.slice(0, LISTED_PAIRS).map(([actual, predicted, images]) => (
        <small key={`${actual} ${predicted}`} class="pair-listed">
          <Named>{names[actual] ?? ""}</Named> as <Named>{names[predicted] ?? ""}</Named>{" "}
          {count(images)}×
        </small>
      ))}
    </p>
  );
}

interface PairsProps {
  names: readonly string[];
  pairs: Cell[];
  totals: number[];
}

function Pairs({ names, pairs, totals }: PairsProps) {
  return (
    <Table label="Most frequent confusions">
      <thead>
        <tr>
          <th>Class</th>
          <th>Classified as</th>
          <th class="number">Images</th>
          <th class="number">Share of the class</th>
        </tr>
      </thead>
      <tbody>
        {pairs.slice(0, PAIRS).map(([actual, predicted, images]) => (
          <tr key={`${actual} ${predicted}`}>
            <td>
              <Named>{names[actual] ?? ""}</Named>
            </td>
            <td>
              <Named>{names[predicted] ?? ""}</Named>
            </td>
            <td class="number">{count(images)}</td>
            <td class="number">{percent(images / (totals[actual] ?? images))}</td>
          </tr>
        ))}
      </tbody>
    </Table>
  );
}
