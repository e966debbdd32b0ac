//! QEMU: arguments per generation, QMP, accelerator probe.
