# add_planted_bug(NAME KERNEL op CASE case ORIGINAL text PLANTED text REPORT regex): builds <op>_test from a copy of the
# kernel with every ORIGINAL replaced, and adds a test that passes when the program's output for the case, with the first
# schedule, matches REPORT. ORIGINAL must be in the kernel, so a change of it cannot quietly turn a planted bug off.
if(POLICY CMP0174)
  cmake_policy(SET CMP0174 NEW)  # an empty PLANTED is an empty string: a bug may be a deletion
endif()

function(add_planted_bug name)
  cmake_parse_arguments(PARSE_ARGV 1 BUG "" "KERNEL;CASE;ORIGINAL;PLANTED;REPORT" "")  # keeps the texts' semicolons
  set(kernel "${csrc}/cuda/${BUG_KERNEL}.cu")
  set(target "planted_${BUG_KERNEL}_${name}")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${kernel}")
  file(READ "${kernel}" text)
  string(FIND "${text}" "${BUG_ORIGINAL}" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "planted bug ${name}: ${BUG_KERNEL}.cu no longer contains: ${BUG_ORIGINAL}")
  endif()
  string(REPLACE "${BUG_ORIGINAL}" "${BUG_PLANTED}" text "${text}")
  set(planted "${CMAKE_CURRENT_BINARY_DIR}/planted/${target}.cpp")
  file(WRITE "${planted}.new" "${text}")
  configure_file("${planted}.new" "${planted}" COPYONLY)  # keeps the time of an unchanged file
  add_executable(${target} $<TARGET_OBJECTS:${BUG_KERNEL}_driver> "${planted}")
  target_include_directories(${target} PRIVATE "${csrc}/cuda")  # the kernel's own header
  target_link_libraries(${target} PRIVATE simt)
  target_compile_options(${target} PRIVATE -Wno-unused-variable -Wno-unused-but-set-variable
                         -Wno-unused-parameter)
  add_test(NAME ${target} COMMAND ${target} ${BUG_CASE} 1)
  set_tests_properties(${target} PROPERTIES PASS_REGULAR_EXPRESSION "${BUG_REPORT}")
endfunction()
