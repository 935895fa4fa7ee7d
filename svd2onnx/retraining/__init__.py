"""Brief retraining of the compressed network by distillation from the float one."""
