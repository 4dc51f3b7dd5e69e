// Accuracy of each class before and after tuning, largest gain first.
import { useMemo, useState } from "preact/hooks";
import { Share, Table } from "../parts/basics";
import { count, points } from "../parts/format";
import { ShowAll } from "../parts/list";
import { Named } from "../parts/named";
import type { ClassFigures } from "../parts/reports";

const FEW = 20; // rows before "Show all"

export function ClassAccuracy({ classes }: { classes: readonly ClassFigures[] }) {
  const [all, setAll] = useState(false);
  const sorted = useMemo(() => classes.toSorted((a, b) => gain(b) - gain(a)), [classes]);
  const rows = all ? sorted : sorted.slice(0, FEW);
  return (
    <>
      <Table label="Accuracy by class">
        <thead>
          <tr>
            <th>Class</th>
            <th class="number wide-only">Images</th>
            <th>Zero-shot and tuned</th>
            <th class="number">Gain</th>
          </tr>
        </thead>
        <tbody>
          {rows.map((row, index) => (
            <Row key={index} row={row} />
          ))}
        </tbody>
      </Table>
      <ShowAll total={sorted.length} shown={rows.length} onAll={() => setAll(true)} />
    </>
  );
}

function Row({ row }: { row: ClassFigures }) {
  const { name, images, before, after } = row;
  return (
    <tr>
      <td>
        <Named>{name}</Named>
      </td>
      <td class="number wide-only">{count(images)}</td>
      <td class="pair">
        <Share of={before} kind="before" />
        <Share of={after} kind="after" />
      </td>
      <td class={gain(row) < 0 ? "number bad-text" : "number"}>{points(before, after)}</td>
    </tr>
  );
}

/** Unknown accuracies count as no change. */
function gain({ before, after }: ClassFigures): number {
  return before === null || after === null ? 0 : after - before;
}
