// Used by the list and the pages of datasets.
import { api, type Dataset } from "../../api/client";
import { Confirm } from "../forms/confirm";
import { isolated } from "../format";
import { attempt } from "../notices";

export function DatasetStatus({ dataset: { status, error } }: { dataset: Dataset }) {
  return (
    <span class={`status ${status}`} title={error?.message}>
      {status}
    </span>
  );
}

interface Props {
  dataset: Dataset;
  onDeleted: () => void;
  class?: string;
}

export function DeleteDataset({ dataset: { id, name }, onDeleted, ...rest }: Props) {
  const remove = async () => {
    const path = { dataset_id: id };
    const done = await attempt(() => api.DELETE("/v1/datasets/{dataset_id}", { params: { path } }));
    if (done) onDeleted();
  };
  return (
    <Confirm
      {...rest}
      label="Delete"
      name={isolated(name)}
      question={`Delete the dataset ${isolated(name)}?`}
      act={remove}
    >
      <p>Its images are deleted permanently. Prompts that were tuned on it stay.</p>
    </Confirm>
  );
}
