import sys
from pathlib import Path

# The hand-made model file that several tests of this room share.
sys.path.insert(0, str(Path(__file__).parent))
