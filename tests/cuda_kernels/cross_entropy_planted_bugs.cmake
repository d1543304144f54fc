set(cross_entropy KERNEL cross_entropy CASE bfloat16)
add_planted_bug(parts_not_there ${cross_entropy}
  ORIGINAL "= part.sum;\n  }\n  __syncthreads();\n" PLANTED "= part.sum;\n  }\n"
  REPORT "SIMT ERROR: race: (read|write) of warp_(maxima|sums)")
add_planted_bug(early_return ${cross_entropy}
  ORIGINAL "  Part part{kMinusInfinity, 0.0f};\n"
  PLANTED "  Part part{kMinusInfinity, 0.0f};\n  if (threadIdx.x >= params.columns) return;\n"
  REPORT "SIMT ERROR: (deadlock: the threads diverged|divergent)")
add_planted_bug(forgets_the_tiles_before ${cross_entropy}
  ORIGINAL "part = {params.max[row], params.sum[row]};" PLANTED "part = {kMinusInfinity, 0.0f};"
  REPORT "MISMATCH")
add_planted_bug(logits_past_the_tile ${cross_entropy}
  ORIGINAL "i < params.columns; i += kThreads) {\n    const float logit"
  PLANTED "i <= params.columns; i += kThreads) {\n    const float logit"
  REPORT "SIMT ERROR: memory fault|MISMATCH")
add_planted_bug(label_of_the_next_tile ${cross_entropy}
  ORIGINAL "column < params.columns" PLANTED "column <= params.columns"
  REPORT "SIMT ERROR: memory fault|MISMATCH")
add_planted_bug(gradient_past_the_tile ${cross_entropy}
  ORIGINAL "i < params.columns; i += kThreads) {\n    const float probability"
  PLANTED "i <= params.columns; i += kThreads) {\n    const float probability"
  REPORT "SIMT ERROR: memory fault|MISMATCH")
add_planted_bug(label_counted_from_the_tile ${cross_entropy}
  ORIGINAL "params.first + i == label" PLANTED "i == label"
  REPORT "MISMATCH")
