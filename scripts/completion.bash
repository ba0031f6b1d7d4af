# bash completion for "xl ft-..." and xlft. The words come from xlft itself.
_xlft_complete() {
	local cur=${COMP_WORDS[COMP_CWORD]} out
	out=$(/usr/local/sbin/xlft __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | sed -e '/^:[0-9]*$/d' -e 's/\t.*//')
	mapfile -t COMPREPLY < <(compgen -W "$out" -- "$cur")
}
_xl_ft_complete() {
	case ${COMP_WORDS[1]} in
	ft-*)
		if ((COMP_CWORD == 1)) || [[ ${COMP_WORDS[1]} == ft-* ]]; then
			_xlft_complete
			return
		fi
		;;
	esac
	# All else as Xen's own completion has it, if it is there.
	if declare -F _xl_own >/dev/null; then _xl_own; fi
}
complete -F _xlft_complete xlft
if complete -p xl >/dev/null 2>&1; then
	eval "$(complete -p xl | sed -n 's/.*-F \([^ ]*\).*/_xl_own() { \1 "$@"; }/p')"
fi
complete -F _xl_ft_complete xl
