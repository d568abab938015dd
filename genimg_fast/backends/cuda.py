# SPDX-License-Identifier: MIT
"""Settings of the CUDA kernels.  Process-wide, like the flags of `torch.backends`.

`allow_wgmma`: whether convolutions of half types may run on Hopper's own tensor-core instructions (wgmma and the tensor memory
accelerator, sm_90a) where GPU and shape allow, and not on mma.sync, which every GPU since sm_80 has.  False by default, since
these kernels have not run on a GPU yet: a fault in them may hang it, and no check on first use protects from that.  The
environment variable GENIMG_FAST_WGMMA=1 sets the default.
"""

from __future__ import annotations

import os

allow_wgmma: bool = os.environ.get("GENIMG_FAST_WGMMA", "0") == "1"
