// Predictions for one image, by the tuned and by the hand-written prompt.
import { useState } from "preact/hooks";
import type { ClassifyResult, Prediction } from "../../api/client";
import { Text } from "../basics";
import { percent } from "../format";
import { Named } from "../named";
import { Prose } from "../prose";

/** An image of the user and, once it is there, its result. */
export interface Tried {
  id: number;
  file: File;
  url: string;
  result: ClassifyResult | undefined;
}

interface Props {
  tried: Tried;
  onRemove: () => void;
}

export function TriedImage({ tried: { file, url, result }, onRemove }: Props) {
  const [isShown, setShown] = useState(true);
  const name = file.name === "" ? "Pasted image" : file.name;
  return (
    <li class="tried card">
      {isShown ? (
        <img src={url} alt="" onError={() => setShown(false)} />
      ) : (
        <div class="no-image">no preview</div>
      )}
      <div class="tried-text">
        <h2>
          <Text>{name}</Text>
          <button class="plain" aria-label="Remove this image" onClick={onRemove}>
            ✕
          </button>
        </h2>
        {result === undefined ? <p class="waiting">Waiting…</p> : <Answer result={result} />}
      </div>
    </li>
  );
}

function Answer({ result: { predictions, zero_shot: before, error } }: { result: ClassifyResult }) {
  if (error) {
    return (
      <p class="notice bad">
        <Prose>{error.message}</Prose>
      </p>
    );
  }
  const changed = before && predictions?.[0]?.index !== before[0]?.index;
  return (
    <div class={before ? "answers two" : "answers"}>
      <Ranking title="Tuned" predictions={predictions ?? []} kind="after" />
      {before && (
        <Ranking
          title={changed ? "Zero-shot · differs" : "Zero-shot"}
          predictions={before}
          kind="before"
        />
      )}
    </div>
  );
}

interface RankingProps {
  title: string;
  predictions: readonly Prediction[];
  kind: "before" | "after";
}

function Ranking({ title, predictions, kind }: RankingProps) {
  return (
    <section aria-label={title}>
      <h3>{title}</h3>
      <ol class="ranking">
        {predictions.map(({ index, label, score }) => (
          <li key={index}>
            <span class="label">
              <Named>{label}</Named>
            </span>
            <span>{percent(score)}</span>
            <meter class={kind} min={0} max={1} value={score} aria-hidden="true" />
          </li>
        ))}
      </ol>
    </section>
  );
}
