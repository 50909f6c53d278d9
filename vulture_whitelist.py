"""Names that ``vulture`` takes for unused, and who uses them. Never imported or run."""

# Read by libraries whose objects they are set on.
_.deep_supervision  # nnU-Net's network
_.num_epochs, _.num_val_iterations_per_epoch, _.save_every  # nnU-Net's trainer
_.benchmark, _.allow_tf32  # torch.backends
_.optimize_ddp  # torch._dynamo.config
_._attn_implementation  # transformers' configuration
_.optimized_model_filepath, _.enable_cpu_mem_arena, _.enable_mem_pattern  # onnxruntime
(
    _.log_severity_level,
    _.intra_op_num_threads,
    _.only_execute_path_to_fetches,
    _.graph_optimization_level,
)  # onnxruntime
_.spool_max_size  # starlette's form parser

# Given by the caller's contract, whether used or not.
_.trace  # of __exit__
_.tensorboard, _.mlflow  # choices of a command line option

# Columns of tables and fields of JSON that are written by name, and read by people.
_.definition, _.median_difference, _.dice_mean, _.transfer_syntax
_.href  # by a template

# Written into files for whoever opens them.
_.min_onnxruntime

# Attributes of DICOM objects, which are written by keyword.
_.PatientOrientation, _.Laterality, _.DerivationDescription, _.BurnedInAnnotation
_.SegmentedPropertyTypeModifierCodeSequence, _.SpecificCharacterSet

# Settings of pynetdicom's application entities, and what http.server calls.
_.maximum_associations, _.acse_timeout, _.dimse_timeout, _.network_timeout, _.connection_timeout
_.require_called_aet, _.require_calling_aet, _.do_GET, _.log_message

# Called by Python and notebooks.
_.__getattr__, _.__dir__, _._repr_png_

# Called by name, from a table of metrics or by users of the Python interface.
_.recall, _.hd95, _.assd, _.boundary_iou, _.nsd_medsam, _.nsd_surface_distance_2d
_.warm_up
_.masks_by_structure
_.encoded  # counted by a test
_.inject_peft, _.load_packed, _.bytes_by_part  # in benchmarks and how-tos

# The other half of ``p_above``, which a test of a margin would miss.
_.p_below
_.__new__  # chest.masks: how NumPy makes an array of a subclass
_.laterality  # of imaging.stated.Stated, for callers: which side of the body a picture shows
