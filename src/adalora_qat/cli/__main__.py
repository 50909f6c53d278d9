"""``python -m adalora_qat.cli``."""

from adalora_qat.cli import main

main()
