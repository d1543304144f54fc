set(sparse_linear KERNEL sparse_linear CASE bfloat16 HEADER sparse_linear_kernel)
add_planted_bug(list_not_finished ${sparse_linear}
  ORIGINAL "    place += __popc(masks[round]);\n  }\n  __syncthreads();\n" PLANTED "    place += __popc(masks[round]);\n  }\n"
  REPORT "SIMT ERROR: race: (read|write) of listed_")
add_planted_bug(sums_overwritten ${sparse_linear}
  ORIGINAL "= sum;\n    }\n    __syncthreads();\n" PLANTED "= sum;\n    }\n"
  REPORT "SIMT ERROR: race: (read|write) of warp_sums")
add_planted_bug(entry_of_another_lane ${sparse_linear}
  ORIGINAL "((1u << lane) - 1u)" PLANTED "((2u << lane) - 1u)"
  REPORT "SIMT ERROR|MISMATCH")
add_planted_bug(no_wait ${sparse_linear}
  ORIGINAL "  simt::wait_for_predecessors();\n" PLANTED ""
  REPORT "SIMT ERROR: a thread of a dependent launch exits without having waited")
add_planted_bug(first_block_adds ${sparse_linear}
  ORIGINAL "arrived_before[0] + 1 != gridDim.y" PLANTED "arrived_before[0] != 0"
  REPORT "MISMATCH: M 1 N 16 K 1025")
add_planted_bug(arrival_not_there ${sparse_linear}
  ORIGINAL "  __syncthreads();\n  if (arrived_before" PLANTED "  if (arrived_before"
  REPORT "SIMT ERROR: race: read of arrived_before")
add_planted_bug(list_not_read ${sparse_linear}
  ORIGINAL "!known_zero && nonzeros != nullptr" PLANTED "false"
  REPORT "MISMATCH: M 1 N 8 K 97")
