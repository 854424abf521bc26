"""What of Ray is no public promise, and is relied on here: when Ray changes it, these tests say so first."""

from __future__ import annotations

import inspect

from ray.data import DataContext
from ray.data._internal.planner.checkpoint.plan_write_op import _generate_base_filename
from ray.data._internal.planner.plan_write_op import WRITE_UUID_KWARG_NAME
from ray.data.checkpoint.checkpoint_filter import CheckpointManager
from ray.data.checkpoint.checkpoint_writer import PENDING_CHECKPOINT_SUFFIX, BatchBasedCheckpointWriter
from ray.data.datasource import BlockBasedFileDatasink

from pipelines.checkpoint import PENDING, SUFFIX


def test_the_older_reader_of_parquet_can_be_chosen() -> None:
    """cluster.session sets it: the newer one starts actors for each dataset."""
    assert isinstance(DataContext().use_datasource_v2, bool)


def test_files_of_the_checkpoint_are_named_as_pipelines_checkpoint_names_them() -> None:
    """It reads, cleans and writes them without Ray."""
    assert f"{PENDING_CHECKPOINT_SUFFIX}{SUFFIX}" == PENDING
    written = inspect.getsource(BatchBasedCheckpointWriter)
    assert 'f"{checkpoint_id}{PENDING_CHECKPOINT_SUFFIX}.parquet"' in written
    assert 'f"{checkpoint_id}.parquet"' in written


def test_a_manager_may_leave_the_filter_out() -> None:
    """pipelines.ray_executor overrides it: the filter is a pool of actors beside ours."""
    assert list(inspect.signature(CheckpointManager.load_checkpoint).parameters) == [
        "self",
        "data_file_dir",
        "data_file_filesystem",
    ]
    told = " ".join((CheckpointManager.__doc__ or "").split())  # Python 3.13 takes the indent away
    assert "Returning ``(None, 0)`` means there is no checkpoint data" in told


def test_a_sink_is_told_how_the_names_of_its_files_begin() -> None:
    """pipelines.ray_executor asks as Ray's checkpoint does, or what a lost task has written would stay."""
    assert WRITE_UUID_KWARG_NAME == "write_uuid"
    assert "datasink.filename_provider.get_filename_for_task(" in inspect.getsource(_generate_base_filename)
    assert list(inspect.signature(BlockBasedFileDatasink.write_block).parameters) == [
        "self",
        "block",
        "block_index",
        "ctx",
    ]


def test_a_streaming_task_can_be_held_back() -> None:
    """pipelines.ray_executor: otherwise it puts all that it yields into the object store at once."""
    from ray._common.ray_option_utils import task_options

    assert "_generator_backpressure_num_objects" in task_options


def test_ray_says_how_many_cpus_it_would_count() -> None:
    """cluster.cores: those of a container's limit. A started Ray counts with the same function."""
    from ray._private import resource_and_label_spec, utils

    assert "override_docker_cpu_warning" in inspect.signature(utils.get_num_cpus).parameters
    assert "ray._private.utils.get_num_cpus()" in inspect.getsource(resource_and_label_spec)
