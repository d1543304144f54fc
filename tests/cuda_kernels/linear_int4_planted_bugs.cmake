set(linear_int4 KERNEL linear_int4 CASE bfloat16)
set(linear_kernel ${linear_int4} HEADER linear_kernel)
set(weight_formats ${linear_int4} HEADER weight_formats THROUGH linear_kernel)
add_planted_bug(scales_past_the_end ${linear_kernel}
  ORIGINAL "held[i].scale[r] = inside ?" PLANTED "held[i].scale[r] = true ?"
  REPORT "SIMT ERROR: memory fault")
add_planted_bug(scale_of_another_group ${linear_kernel}
  ORIGINAL "(vectors / 2) + vector / 2] : 0.0f" PLANTED "(vectors / 2)] : 0.0f"
  REPORT "MISMATCH")
add_planted_bug(halves_exchanged ${weight_formats}
  ORIGINAL "if (chunk < 2) {" PLANTED "if (chunk >= 2) {"
  REPORT "MISMATCH")
