set(linear KERNEL linear CASE bfloat16 HEADER linear_kernel)
add_planted_bug(no_wait ${linear}
  ORIGINAL "  simt::wait_for_predecessors();\n" PLANTED ""
  REPORT "SIMT ERROR: a thread of a dependent launch exits without having waited")
add_planted_bug(late_wait ${linear}
  ORIGINAL "  simt::wait_for_predecessors();\n"
  PLANTED "  struct AtTheEnd { ~AtTheEnd() { simt::wait_for_predecessors(); } } wait;\n"
  REPORT "MISMATCH: M 1 N 5")
add_planted_bug(activations_overwritten ${linear}
  ORIGINAL "      __syncthreads();  // the readers" PLANTED "      // the readers"
  REPORT "SIMT ERROR: race: (read|write) of (activations|statistics)")
add_planted_bug(list_of_half_a_row ${linear}
  ORIGINAL "((1u << kM) - 1u)" PLANTED "((1u << (kM + 1) / 2) - 1u)"
  REPORT "MISMATCH: word 0 of the non-zeros")
add_planted_bug(list_not_finished ${linear}
  ORIGINAL "nonzero_rows;\n    __syncthreads();\n" PLANTED "nonzero_rows;\n"
  REPORT "SIMT ERROR: race: (read|write) of warp_nonzeros")

set(row_norms KERNEL linear CASE bfloat16 HEADER row_norms THROUGH linear_kernel)
add_planted_bug(sums_not_there ${row_norms}
  ORIGINAL "    __syncthreads();\n    if (threadIdx.x >= kM) return;\n" PLANTED "    if (threadIdx.x >= kM) return;\n"
  REPORT "SIMT ERROR: race: (read|write) of partial_statistics")
add_planted_bug(mean_not_there ${row_norms}
  ORIGINAL "  __syncthreads();\n  reduce(" PLANTED "  reduce("
  REPORT "SIMT ERROR: race: read of statistics")
