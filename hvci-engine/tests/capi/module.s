# module.ko, the module that vmm.c loads: one page of each kind. Made and signed once, with a key that was thrown away:
#
#   as -o module.ko module.s
#   openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -days 36500 -subj "/CN=HVCI C interface test" \
#     -addext basicConstraints=critical,CA:FALSE -addext keyUsage=digitalSignature -outform DER -out signer.der
#   openssl x509 -inform DER -in signer.der -out signer.pem
#   openssl cms -sign -binary -noattr -nocerts -md sha256 -signer signer.pem -inkey key.pem -in module.ko -outform DER -out sig
#   { cat sig; printf '\0\0\2\0\0\0\0\0'; printf '%08x' $(stat -c %s sig) | xxd -r -p; printf '~Module signature appended~\n'; } >> module.ko

        .section .modinfo, "a"
        .asciz  "name=module"
        .asciz  "license=GPL"

        .text
answer: mov     $42, %eax
        ret

        .section .rodata
        .quad   _printk

        .data
        .quad   7

        .section .init.text, "ax"
        .globl  init_module
init_module:
        xor     %eax, %eax
        ret
