"""What makes it a zoo: checkpoints, data, training glue and the bridge to OpenMMLab."""
