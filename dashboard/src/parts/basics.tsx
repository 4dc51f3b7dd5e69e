// Small things that every page uses.
import type { ComponentChildren } from "preact";
import { Link } from "wouter-preact";
import type { Job } from "../api/client";
import { ago, count, duration, interval, moment, percent } from "./format";

/** Text of a user, isolated so that its writing direction does not affect the text around it. */
export function Text({ children, title }: { children: string; title?: string }) {
  return (
    <bdi class="user-text" title={title ?? children}>
      {children}
    </bdi>
  );
}

export function Time({ at }: { at: string }) {
  return (
    <time dateTime={at} title={moment(at)}>
      {ago(at)}
    </time>
  );
}

export function Status({ job }: { job: Job }) {
  const doing = job.status === "running" && job.phase_label !== null;
  return (
    <span class={`status ${job.status}`}>
      {job.status}
      {doing && <small> {job.finishing ? "finishing" : job.phase_label}</small>}
    </span>
  );
}

export function Progress({ job }: { job: Job }) {
  const { step, total_steps: total, eta_seconds: eta } = job.progress;
  const label = `step ${step} of ${total}`;
  return (
    <span class="progress">
      <progress value={total > 0 ? step / total : 0} aria-label={label} title={label} />
      <small>{eta === null ? `${step} / ${total}` : `${duration(eta)} left`}</small>
    </span>
  );
}

interface ShareProps {
  of: number | null;
  kind?: "before" | "after";
  /** Of an accuracy with an interval: the images that it was measured on. */
  images?: number | null | undefined;
}

/** A fraction as a bar with its number. */
export function Share({ of, kind, images }: ShareProps) {
  return (
    <span class="share">
      <meter class={kind ?? "after"} min={0} max={1} value={of ?? 0} aria-hidden="true" />
      <span>{percent(of)}</span>
      {of !== null && images ? <small>{interval(of, images)}</small> : null}
    </span>
  );
}

interface Measured {
  images: number | null | undefined;
  split?: "test" | "validation";
}

interface BasisProps extends Measured {
  accuracy: number | null | undefined;
}

/** The images on which a tuning job compares accuracies. */
export function compared({
  test_images: test,
  validation_images: other,
}: Job["metrics"]): Measured {
  return test ? { images: test } : { images: other, split: "validation" };
}

/** What an accuracy rests on; no interval on validation images, as they also chose the prompt. */
export function Basis({ accuracy, images, split = "test" }: BasisProps) {
  const kind = split === "test" ? "" : "validation ";
  if (accuracy == null) return null;
  if (!images) return kind === "" ? null : <small class="basis">validation images</small>;
  return (
    <small class="basis">
      {split === "test" && (
        <span class="nowrap" title="95 % interval: it covers which images happened to be drawn">
          {interval(accuracy, images)} (95 %),
        </span>
      )}{" "}
      <span class="nowrap">
        {count(images)} {kind}
        {images === 1 ? "image" : "images"}
      </span>
    </small>
  );
}

export function Fact({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <div class="fact">
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

interface TableProps {
  label: string;
  /** Show each row as a block on a phone; its cells then need a `data-label`. */
  stack?: boolean;
  children: ComponentChildren;
}

/** A table that scrolls where it is too wide, also by keyboard. */
export function Table({ label, stack = false, children }: TableProps) {
  return (
    <div class="table" role="region" aria-label={label} tabIndex={0}>
      <table class={stack ? "stack" : ""}>{children}</table>
    </div>
  );
}

export function Empty({ children }: { children: ComponentChildren }) {
  return <p class="empty">{children}</p>;
}

export function JobLink({ id }: { id: string }) {
  return (
    <Link href={`/jobs/${id}`}>
      <code>{id}</code>
    </Link>
  );
}

export function isOver(job: Job): boolean {
  return ["succeeded", "failed", "cancelled"].includes(job.status);
}
