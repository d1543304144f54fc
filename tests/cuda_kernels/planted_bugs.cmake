# add_planted_bug(NAME KERNEL op CASE case [HEADER header [THROUGH header]] ORIGINAL text PLANTED text REPORT regex): builds
# <op>_test from a copy of the kernel (of csrc/cuda/<header>.cuh, which the kernel includes, by way of the header THROUGH)
# with every ORIGINAL replaced, and adds a test that passes when the program's output for the case, with the first schedule,
# matches REPORT. ORIGINAL must be there, so a change of the kernel cannot quietly turn a planted bug off.
if(POLICY CMP0174)
  cmake_policy(SET CMP0174 NEW)  # an empty PLANTED is an empty string: a bug may be a deletion
endif()

# A copy of `source` as `copy`, with the bug in it if it is the `changed` file; `copy` keeps its time where it is the same.
function(copy_with_bug source copy changed)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${source}")
  file(READ "${source}" text)
  string(FIND "${text}" "${BUG_ORIGINAL}" position)
  if("${source}" STREQUAL "${changed}")
    if(position EQUAL -1)
      message(FATAL_ERROR "planted bug in ${BUG_KERNEL}: ${source} no longer contains: ${BUG_ORIGINAL}")
    endif()
    string(REPLACE "${BUG_ORIGINAL}" "${BUG_PLANTED}" text "${text}")
  endif()
  string(REPLACE "#include \"../simt/simt.h\"" "#include \"simt/simt.h\"" text "${text}")
  file(WRITE "${copy}.new" "${text}")
  configure_file("${copy}.new" "${copy}" COPYONLY)
endfunction()

function(add_planted_bug name)
  cmake_parse_arguments(PARSE_ARGV 1 BUG "" "KERNEL;CASE;HEADER;THROUGH;ORIGINAL;PLANTED;REPORT" "")  # keeps the texts' semicolons
  set_property(GLOBAL APPEND PROPERTY kernels_with_planted_bugs ${BUG_KERNEL})
  set(kernel "${csrc}/cuda/${BUG_KERNEL}.cu")
  set(target "planted_${BUG_KERNEL}_${name}")
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/planted/${target}")
  set(changed "${kernel}")
  if(BUG_HEADER)
    set(changed "${csrc}/cuda/${BUG_HEADER}.cuh")
    foreach(header ${BUG_HEADER} ${BUG_THROUGH})  # found before the originals: beside the kernel, and beside each other
      copy_with_bug("${csrc}/cuda/${header}.cuh" "${folder}/${header}.cuh" "${changed}")
    endforeach()
  endif()
  copy_with_bug("${kernel}" "${folder}/kernel.cpp" "${changed}")
  add_executable(${target} $<TARGET_OBJECTS:${BUG_KERNEL}_driver> "${folder}/kernel.cpp")
  target_include_directories(${target} PRIVATE "${csrc}/cuda")
  target_link_libraries(${target} PRIVATE kernels)
  target_compile_options(${target} PRIVATE -Wno-unused-variable -Wno-unused-but-set-variable
                         -Wno-unused-parameter)
  add_test(NAME ${target} COMMAND ${target} ${BUG_CASE} 1)
  set_tests_properties(${target} PROPERTIES PASS_REGULAR_EXPRESSION "${BUG_REPORT}")
endfunction()
