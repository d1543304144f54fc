set(attention_hopper KERNEL attention_hopper CASE bfloat16)
add_planted_bug(no_wait_for_keys ${attention_hopper}
  ORIGINAL "    k_ring.wait_full(n + 1);\n" PLANTED ""
  REPORT "SIMT ERROR: (race|.*is used before)")
add_planted_bug(no_wait_for_an_empty_tile ${attention_hopper}
  ORIGINAL "    simt::mbarrier_wait(empty + stage(n), parity(n) ^ 1);" PLANTED "    "
  REPORT "SIMT ERROR: ")
add_planted_bug(expects_too_few_bytes ${attention_hopper}
  ORIGINAL "simt::mbarrier_arrive_expect(full + stage(n), kTileBytes)"
  PLANTED "simt::mbarrier_arrive_expect(full + stage(n), kTileBytes - 128)"
  REPORT "SIMT ERROR: ")
add_planted_bug(waits_for_one_warp_too_many ${attention_hopper}
  ORIGINAL "simt::mbarrier_init(empty + stage, kConsumerWarps)"
  PLANTED "simt::mbarrier_init(empty + stage, kConsumerWarps + 1)"
  REPORT "SIMT ERROR: deadlock")
add_planted_bug(every_lane_arrives ${attention_hopper}
  ORIGINAL "if (threadIdx.x % simt::kWarpSize == 0) simt::mbarrier_arrive(empty" PLANTED "simt::mbarrier_arrive(empty"
  REPORT "SIMT ERROR: ")
add_planted_bug(barriers_not_shared_before_use ${attention_hopper}
  ORIGINAL "  __syncthreads();\n" PLANTED ""
  REPORT "SIMT ERROR: ")
add_planted_bug(weak_wait_for_scores ${attention_hopper}
  ORIGINAL "simt::wgmma_wait<1>();" PLANTED "simt::wgmma_wait<2>();"
  REPORT "SIMT ERROR: |MISMATCH")
add_planted_bug(releases_values_too_early ${attention_hopper}
  ORIGINAL "    softmax(n + 1);\n" PLANTED "    softmax(n + 1);\n    v_ring.release(n);\n"
  REPORT "SIMT ERROR: ")
add_planted_bug(overwrites_weights_in_use ${attention_hopper}
  ORIGINAL "    softmax(n + 1);\n" PLANTED "    softmax(n + 1);\n    round_weights<T>(weights, scores);\n"
  REPORT "SIMT ERROR: the registers of a left operand changed")
add_planted_bug(no_fence_for_cleared_rows ${attention_hopper}
  ORIGINAL "  simt::fence_async_proxy();\n  simt::named_barrier_sync(kConsumerBarrier"
  PLANTED "  simt::named_barrier_sync(kConsumerBarrier"
  REPORT "SIMT ERROR: .*without fence_async_proxy")
add_planted_bug(no_barrier_for_cleared_rows ${attention_hopper}
  ORIGINAL "  simt::named_barrier_sync(kConsumerBarrier, kConsumerThreads);\n" PLANTED ""
  REPORT "SIMT ERROR: race: ")
add_planted_bug(reads_values_nobody_sees ${attention_hopper}
  ORIGINAL "clear_rows(v_tile, visible.start - first_key, keys_end - first_key);" PLANTED ""
  REPORT "MISMATCH")
