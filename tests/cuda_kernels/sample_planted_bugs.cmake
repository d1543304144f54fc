set(sample KERNEL sample CASE bfloat16)
add_planted_bug(histogram_not_cleared ${sample}
  ORIGINAL "params.histograms[row * histogram_words + i] = 0;" PLANTED "{}"
  REPORT "MISMATCH")
add_planted_bug(arrivals_not_cleared ${sample}
  ORIGINAL "params.arrivals[row] = 0;" PLANTED "{}"
  REPORT "MISMATCH")
add_planted_bug(no_wait ${sample}
  ORIGINAL "  simt::wait_for_predecessors();\n" PLANTED ""
  REPORT "SIMT ERROR: a thread of a dependent launch exits without having waited")
add_planted_bug(waits_too_late ${sample}
  ORIGINAL "simt::wait_for_predecessors();\n  const int64_t row = blockIdx.y, first"
  PLANTED "struct Late { ~Late() { simt::wait_for_predecessors(); } } late;\n  const int64_t row = blockIdx.y, first"
  REPORT "MISMATCH")
add_planted_bug(bins_not_cleared ${sample}
  ORIGINAL "  own.clear();" PLANTED "  "
  REPORT "SIMT ERROR|MISMATCH")
add_planted_bug(bins_not_finished ${sample}
  ORIGINAL "  __syncthreads();\n  own.add_to(histogram);" PLANTED "  own.add_to(histogram);"
  REPORT "SIMT ERROR: race: (read|atomic operation) of (low|high)_words")
add_planted_bug(first_block_chooses ${sample}
  ORIGINAL "arrived_before[0] + 1 != gridDim.x" PLANTED "arrived_before[0] != 0"
  REPORT "MISMATCH")
add_planted_bug(arrival_not_there ${sample}
  ORIGINAL "  __syncthreads();\n  if (arrived_before" PLANTED "  if (arrived_before"
  REPORT "SIMT ERROR: race: (read|write) of arrived_before")
add_planted_bug(winners_not_there ${sample}
  ORIGINAL "best.token;\n  }\n  __syncthreads();\n" PLANTED "best.token;\n  }\n"
  REPORT "SIMT ERROR: race: (read|write) of warp_(scores|tokens)")
add_planted_bug(last_of_equals KERNEL sample CASE rows
  ORIGINAL "b.token < a.token" PLANTED "b.token > a.token"
  REPORT "MISMATCH: the first of equals")

set(sample_threshold ${sample} HEADER sample_threshold)
add_planted_bug(shuffle_of_some_lanes ${sample_threshold}
  ORIGINAL "    const uint64_t other = __shfl_up_sync(~0u, up_to, offset);\n    if (lane >= offset) up_to += other;\n"
  PLANTED "    if (lane >= offset) up_to += __shfl_up_sync(~0u, up_to, offset);\n"
  REPORT "SIMT ERROR: (deadlock: the threads diverged|divergent)")
add_planted_bug(barrier_of_some_lanes ${sample_threshold}
  ORIGINAL "= value;\n  __syncthreads();\n" PLANTED "= value, __syncthreads();\n"
  REPORT "SIMT ERROR: (deadlock: the threads diverged|divergent|race)")
add_planted_bug(tops_not_there ${sample_threshold}
  ORIGINAL "= value;\n  __syncthreads();\n" PLANTED "= value;\n"
  REPORT "SIMT ERROR: race: (read|write) of warp_tops")
add_planted_bug(sums_not_there ${sample_threshold}
  ORIGINAL "warp_sums[warp] = up_to;\n  __syncthreads();\n" PLANTED "warp_sums[warp] = up_to;\n"
  REPORT "SIMT ERROR: race: (read|write) of warp_sums")
add_planted_bug(bin_not_there ${sample_threshold}
  ORIGINAL "  __syncthreads();\n  range.before = found[0];" PLANTED "  range.before = found[0];"
  REPORT "SIMT ERROR: race: (read|write) of found")
add_planted_bug(logits_past_the_row ${sample_threshold}
  ORIGINAL "own + j * kSampleThreads < V" PLANTED "own + j * kSampleThreads <= V"
  REPORT "SIMT ERROR: memory fault|MISMATCH")
add_planted_bug(lost_atomic ${sample_threshold}
  ORIGINAL "before = simt::atomic_add(low + bin, low_word);" PLANTED "before = low[bin];\n    low[bin] = before + low_word;"
  REPORT "SIMT ERROR: race: (read|write) of low_words")
add_planted_bug(lost_carry ${sample_threshold}
  ORIGINAL "if (high_word != 0)" PLANTED "if (false)"
  REPORT "MISMATCH")
add_planted_bug(temperature_forgotten KERNEL sample CASE distribution
  ORIGINAL "key_of(logit, top, params.temperature)" PLANTED "key_of(logit, top, 1.0f)"
  REPORT "MISMATCH: chi-square")
