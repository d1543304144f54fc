// The barriers of a block: __syncthreads and the named ones (declared in runtime.h). Called by the scheduler:
#pragma once

namespace simt {

void start_barriers(int threads);  // a new block begins
void leave_barriers();             // the current thread exits

}  // namespace simt
