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
