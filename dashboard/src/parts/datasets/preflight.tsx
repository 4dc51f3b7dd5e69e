// What the pre-flight check found in a dataset (`sharpzo-preflight/1`).
import { useState } from "preact/hooks";
import type { Dataset } from "../../api/client";
import { Table, Text } from "../basics";
import { bytes, count } from "../format";
import { ShowAll } from "../list";
import { Named } from "../named";
import { Prose } from "../prose";

const FORMAT = "sharpzo-preflight/1";
const FEW_CLASSES = 50; // rows before "Show all"
const SPLITS = ["train", "val", "test"] as const;

interface Finding {
  severity: "error" | "warning";
  code: string;
  message: string;
  fix: string;
  count: number;
  examples: string[];
}

interface Spread {
  min: number;
  median: number;
  max: number;
}

type ClassRow = { name: string } & Record<(typeof SPLITS)[number], number>;

export interface Preflight {
  format: string;
  ok: boolean;
  bytes: number;
  skipped: number;
  errors: number;
  warnings: number;
  findings: Finding[];
  classes: { total: number; listed: ClassRow[] };
  sizes: {
    images: number;
    width: Spread;
    height: Spread;
    bytes: Spread;
    formats: Record<string, number>;
  } | null;
  unreadable: { total: number; listed: { file: string; code: string; reason: string }[] };
}

/** The report, if there is one in the format that this page knows. */
export function preflightOf(report: Dataset["report"]): Preflight | null {
  return report?.["format"] === FORMAT ? (report as unknown as Preflight) : null;
}

export function Findings({ report }: { report: Preflight }) {
  return (
    <section class="card">
      <h2>
        Pre-flight check <Verdict report={report} />
      </h2>
      {report.findings.length === 0 ? (
        <p class="empty">No problems found.</p>
      ) : (
        <ul class="findings">
          {report.findings.map((finding) => (
            <Item key={finding.code + finding.message} finding={finding} />
          ))}
        </ul>
      )}
    </section>
  );
}

function Verdict({ report: { ok, errors, warnings } }: { report: Preflight }) {
  const counts = [plural(errors, "error"), plural(warnings, "warning")].filter(
    (part) => part !== "",
  );
  const kind = ok ? (warnings > 0 ? "warn" : "good") : "bad";
  return (
    <span class={`tag ${kind}`}>
      {ok ? "usable for tuning" : "not usable"}
      {counts.length > 0 && ` · ${counts.join(", ")}`}
    </span>
  );
}

function plural(number: number, noun: string): string {
  return number === 0 ? "" : `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

function Item({
  finding: { severity, message, fix, count: number, examples },
}: {
  finding: Finding;
}) {
  const more = number - examples.length;
  return (
    <li class={severity}>
      <div>
        <strong>
          <span class="severity">{severity}</span> <Prose>{message}</Prose>
        </strong>
        {number > 1 && <small> {count(number)}×</small>}
      </div>
      {examples.length > 0 && (
        <div class="examples">
          {examples.map((example, index) => (
            <Text key={index}>{example}</Text>
          ))}
          {more > 0 && <small>and {count(more)} more</small>}
        </div>
      )}
      <small>
        <Prose>{fix}</Prose>
      </small>
    </li>
  );
}

export function ClassCounts({ report: { classes } }: { report: Preflight }) {
  const [all, setAll] = useState(false);
  if (classes.listed.length === 0) return null;
  const rows = all ? classes.listed : classes.listed.slice(0, FEW_CLASSES);
  const most = Math.max(...classes.listed.map((row) => row.train), 1);
  return (
    <section class="card">
      <h2>Classes</h2>
      <Table label="Images of each class">
        <thead>
          <tr>
            <th>Class</th>
            <th class="number">Train</th>
            <th class="wide-only" />
            <th class="number">Val</th>
            <th class="number">Test</th>
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={row.name}>
              <td>
                <Named>{row.name}</Named>
              </td>
              <td class="number">{count(row.train)}</td>
              <td class="wide-only">
                <meter class="before" min={0} max={most} value={row.train} aria-hidden="true" />
              </td>
              <td class="number">{count(row.val)}</td>
              <td class="number">{count(row.test)}</td>
            </tr>
          ))}
        </tbody>
      </Table>
      <ShowAll total={classes.listed.length} shown={rows.length} onAll={() => setAll(true)} />
      {classes.total > classes.listed.length && (
        <p class="empty">{count(classes.total - classes.listed.length)} more are not listed.</p>
      )}
    </section>
  );
}

export function Sizes({ report: { sizes, skipped } }: { report: Preflight }) {
  if (sizes === null) return null;
  const rows: [string, Spread, (value: number) => string][] = [
    ["Width, pixels", sizes.width, count],
    ["Height, pixels", sizes.height, count],
    ["File", sizes.bytes, bytes],
  ];
  return (
    <section class="card">
      <h2>Images</h2>
      <Table label="Sizes of the images">
        <thead>
          <tr>
            <th />
            <th class="number">Smallest</th>
            <th class="number">Median</th>
            <th class="number">Largest</th>
          </tr>
        </thead>
        <tbody>
          {rows.map(([name, spread, format]) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              <td class="number">{format(spread.min)}</td>
              <td class="number">{format(spread.median)}</td>
              <td class="number">{format(spread.max)}</td>
            </tr>
          ))}
        </tbody>
      </Table>
      <p class="tags">
        {Object.entries(sizes.formats).map(([format, images]) => (
          <span key={format} class="tag">
            {format} {count(images)}
          </span>
        ))}
        {skipped > 0 && <small>{count(skipped)} other files skipped</small>}
      </p>
    </section>
  );
}

export function Unreadable({ report: { unreadable } }: { report: Preflight }) {
  const { total, listed } = unreadable;
  if (total === 0) return null;
  return (
    <section class="card">
      <h2>Images that cannot be read: {count(total)}</h2>
      <Table label="Images that cannot be read">
        <thead>
          <tr>
            <th>File</th>
            <th>Why</th>
          </tr>
        </thead>
        <tbody>
          {listed.map(({ file, reason }) => (
            <tr key={file}>
              <td>
                <Text>{file}</Text>
              </td>
              <td>
                <Text>{reason}</Text>
              </td>
            </tr>
          ))}
        </tbody>
      </Table>
      {total > listed.length && <p class="empty">{count(total - listed.length)} more.</p>}
    </section>
  );
}
